package config

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"

	"stasis/internal/codec"
	"stasis/internal/image"
)

// Setting describes one key, for help texts.
type Setting struct {
	Key      string
	Variable string // in the environment
	Default  string // for people; "" where the library has one
	Example  string
	Help     string
}

// Settings lists all keys, section by section.
func Settings() []Setting {
	list := make([]Setting, len(settings))
	fallback := Default()
	for i, s := range settings {
		list[i] = Setting{Key: s.key, Variable: s.variable(), Default: s.get(fallback), Example: s.example, Help: s.help}
	}
	return list
}

var settings = []setting{
	count("checkpoint.stream", "4", "how many files a checkpoint is written to in parallel; 0 is one for each CPU", image.MaxShards,
		func(c *Config) *int { return &c.Checkpoint.Stream }),
	path("checkpoint.dir", "/srv/checkpoints", "the default folder: where checkpoints go that are made by name",
		func(c *Config) *string { return &c.Checkpoint.Dir }),
	{
		key: "checkpoint.compression", example: "zstd",
		help: "codec of new checkpoints: " + strings.Join(codec.Names(), ", "),
		get:  func(c *Config) string { return c.Checkpoint.Compression },
		set: func(c *Config, text string) error {
			if _, err := codec.New(text, 0); err != nil {
				return err
			}
			c.Checkpoint.Compression = text
			return nil
		},
	},
	{
		key: "checkpoint.level", example: "3",
		help: "level of the codec; 0 is its default",
		get:  func(c *Config) string { return strconv.Itoa(c.Checkpoint.Level) },
		set: func(c *Config, text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 {
				return fmt.Errorf("%q: it is a whole number, or 0 for the codec's default", text)
			}
			c.Checkpoint.Level = n
			return nil
		},
	},
	count("checkpoint.nice", "10", "how much less priority a dump has than other programs, 0 to 19", 19,
		func(c *Config) *int { return &c.Checkpoint.Nice }),
	bytesOf("checkpoint.bandwidth", "200M", "bytes per second that a dump writes at most; 0 is no limit",
		func(c *Config) *int64 { return &c.Checkpoint.Bandwidth }),
	count("checkpoint.max_dumps", "2", "how many dumps the daemon makes at once; 0 is half of the CPUs", 1024,
		func(c *Config) *int { return &c.Checkpoint.MaxDumps }),
	count("checkpoint.keep_last", "5", "keep the newest N checkpoints of a job; with no rule all are kept", 1<<20,
		func(c *Config) *int { return &c.Checkpoint.Keep.Last }),
	count("checkpoint.keep_hourly", "24", "keep the newest of each of the last N hours", 1<<20,
		func(c *Config) *int { return &c.Checkpoint.Keep.Hourly }),
	count("checkpoint.keep_daily", "7", "keep the newest of each of the last N days", 1<<20,
		func(c *Config) *int { return &c.Checkpoint.Keep.Daily }),
	count("checkpoint.keep_weekly", "4", "keep the newest of each of the last N weeks", 1<<20,
		func(c *Config) *int { return &c.Checkpoint.Keep.Weekly }),
	count("checkpoint.keep_monthly", "12", "keep the newest of each of the last N months", 1<<20,
		func(c *Config) *int { return &c.Checkpoint.Keep.Monthly }),
	bytesOf("checkpoint.keep_bytes", "100G", "delete the oldest of a job until they take at most so much; 0 is no limit",
		func(c *Config) *int64 { return &c.Checkpoint.Keep.Bytes }),

	path("daemon.socket", "/run/stasis/stasis.sock", "where the daemon serves its API",
		func(c *Config) *string { return &c.Daemon.Socket }),
	address("daemon.tcp", ":8443", "serve on this host:port as well, with mutual TLS only",
		func(c *Config) *string { return &c.Daemon.TCP }),
	path("daemon.tls_cert", "/etc/stasis/tls/daemon.pem", "the daemon's certificate",
		func(c *Config) *string { return &c.Daemon.TLSCert }),
	path("daemon.tls_key", "/etc/stasis/tls/daemon-key.pem", "the key of that certificate",
		func(c *Config) *string { return &c.Daemon.TLSKey }),
	path("daemon.tls_ca", "/etc/stasis/tls/ca.pem", "the authority of clients' certificates: whoever has one may do everything",
		func(c *Config) *string { return &c.Daemon.TLSCA }),
	loopback("daemon.page", "127.0.0.1:7070", "serve the page for browsers on this loopback address; \"stasis daemon page\" gives a link",
		func(c *Config) *string { return &c.Daemon.Page }),
	words("daemon.allow_users", "alice, 1001", "users besides root that may call, for what is their own; * is all users",
		func(c *Config) *[]string { return &c.Daemon.AllowUsers }),
	span("daemon.idle_timeout", "5m", "a daemon that was started on demand leaves after so long with nothing to do",
		func(c *Config) *duration { return &c.Daemon.IdleTimeout }),
	span("daemon.stop_timeout", "30s", "how long running calls and last checkpoints may take when the daemon stops",
		func(c *Config) *duration { return &c.Daemon.StopTimeout }),
	count("daemon.max_calls", "16", "how many calls one user may have under way", 1<<16,
		func(c *Config) *int { return &c.Daemon.MaxCalls }),

	path("jobs.dir", "/srv/jobs", "where the logs of jobs are",
		func(c *Config) *string { return &c.Jobs.Dir }),
	path("jobs.state", "/srv/state.db", "the database of jobs",
		func(c *Config) *string { return &c.Jobs.State }),
	bytesOf("jobs.log_bytes", "16M", "how much of a job's output is kept",
		func(c *Config) *int64 { return &c.Jobs.LogBytes }),
	count("jobs.max_chain", "16", "begin a new chain after so many checkpoints that build on each other; 1 is none that does", 1<<16,
		func(c *Config) *int { return &c.Jobs.MaxChain }),
	count("jobs.max_retries", "3", "how often in a row it is tried to bring a job back", 1<<20,
		func(c *Config) *int { return &c.Jobs.MaxRetries }),
	span("jobs.restart_delay", "5s", "pause before the second attempt in a row to bring a job back (the first is immediate); it doubles with each",
		func(c *Config) *duration { return &c.Jobs.RestartDelay }),
	truth("jobs.dump_on_stop", "make a checkpoint of each job when the daemon is stopped by SIGTERM",
		func(c *Config) *bool { return &c.Jobs.DumpOnStop }),

	word("log.level", "how much the daemon logs: debug, info, warn, error", []string{"debug", "info", "warn", "error"},
		func(c *Config) *string { return &c.Log.Level }),
	word("log.format", "form of the daemon's log: text, json", []string{"text", "json"},
		func(c *Config) *string { return &c.Log.Format }),
	path("log.file", "/srv/stasis.log", "where a daemon in the background logs; one in the foreground uses standard error",
		func(c *Config) *string { return &c.Log.File }),

	{
		key: "trace.collector", example: "http://localhost:4318",
		help: "where spans go, by OTLP over HTTP; auto is where the variables OTEL_EXPORTER_OTLP_… say, and nowhere without them; off is nowhere",
		get:  func(c *Config) string { return c.Trace.Collector },
		set: func(c *Config, text string) error {
			u, err := url.Parse(text)
			if text != TraceAuto && text != TraceOff && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
				return fmt.Errorf("%q: it is %s, %s, or the URL of a collector, such as http://localhost:4318", text, TraceAuto, TraceOff)
			}
			c.Trace.Collector = text
			return nil
		},
	},
}

// check looks at settings that depend on each other, which may come from different places.
func (c *Config) check() error {
	return errors.Join(c.checkLevel(), c.checkTLS())
}

func (c *Config) checkLevel() error {
	p := &c.Checkpoint
	if p.Level == 0 {
		return nil
	}
	if p.Compression == "" {
		return fmt.Errorf("the configuration sets checkpoint.level to %d without checkpoint.compression, and levels mean something else for each codec: set both", p.Level)
	}
	if _, err := codec.New(p.Compression, p.Level); err != nil {
		return fmt.Errorf("the configuration's checkpoint.level: %w", err)
	}
	return nil
}

// checkTLS: there is no TCP without TLS on both sides.
func (c *Config) checkTLS() error {
	d := &c.Daemon
	if d.TCP != "" && (d.TLSCert == "" || d.TLSKey == "" || d.TLSCA == "") {
		return fmt.Errorf("the configuration sets daemon.tcp to %s without TLS: set daemon.tls_cert, daemon.tls_key and daemon.tls_ca as well", d.TCP)
	}
	return nil
}

func find(key string) (*setting, bool) {
	for i := range settings {
		if settings[i].key == key {
			return &settings[i], true
		}
	}
	return nil, false
}

func isSection(name string) bool {
	for _, s := range settings {
		if strings.HasPrefix(s.key, name+".") {
			return true
		}
	}
	return false
}

// example names a key that belongs in a section, without the section.
func example(section string) string {
	for _, s := range settings {
		if rest, ok := strings.CutPrefix(s.key, section+"."); ok {
			return rest + ": " + s.example
		}
	}
	return "checkpoint:"
}

func keys() []string {
	var list []string
	for _, s := range settings {
		list = append(list, s.key)
	}
	return list
}

func variableNames() []string {
	var list []string
	for _, s := range settings {
		list = append(list, s.variable())
	}
	return list
}

// nearest is the word of the list that takes the fewest changes to get to. A word that is the last part of one of them ("dir")
// is meant to be that one.
func nearest(word string, list []string) string {
	best, least := "", 0
	for _, candidate := range list {
		distance := levenshtein.ComputeDistance(word, candidate)
		if _, last, ok := strings.Cut(candidate, "."); ok {
			distance = min(distance, levenshtein.ComputeDistance(word, last))
		}
		if best == "" || distance < least {
			best, least = candidate, distance
		}
	}
	return best
}
