package config

import (
	"runtime"
	"time"
)

// Config holds the settings. [Load] and [Default] make one.
type Config struct {
	Checkpoint Checkpoint
	Daemon     Daemon
	Jobs       Jobs
	Log        Log
	Trace      Trace

	path    string            // of the file that was looked for
	origins map[string]string // where a setting came from, by its key; "": the default
}

// Path is the file that the settings were looked for in; it need not exist.
func (c *Config) Path() string { return c.path }

// Checkpoint holds the settings for making and keeping checkpoints.
type Checkpoint struct {
	Stream      int    // number of shards; 0: one for each CPU
	Dir         string // folder of the checkpoints that are made by name, an absolute path
	Compression string // codec; "": the library's default
	Level       int    // of the codec; 0: its default

	Nice      int   // how much less priority a dump has, 0 to 19
	Bandwidth int64 // bytes per second that a dump writes at most; 0: no limit
	MaxDumps  int   // how many the daemon makes at once; 0: half of the CPUs

	Keep Keep // what is kept of jobs that do not say it themselves
}

// Dumps is how many dumps the daemon makes at once.
func (c *Checkpoint) Dumps() int {
	if c.MaxDumps > 0 {
		return c.MaxDumps
	}
	return max(1, runtime.NumCPU()/2)
}

// Keep says what is kept. A checkpoint stays if any of the rules keeps it; with no rule everything stays.
type Keep struct {
	Last, Hourly, Daily, Weekly, Monthly int
	Bytes                                int64 // the oldest go until all take at most so many; 0: no limit
}

// Daemon holds the settings of the daemon.
type Daemon struct {
	Socket          string        // an absolute path
	TCP             string        // host:port to serve on with mutual TLS; "": none
	TLSCert, TLSKey string        // of the daemon, PEM files
	TLSCA           string        // who signs the certificates of clients, a PEM file
	Page            string        // loopback address with a port of the page for browsers; "": none
	AllowUsers      []string      // names or numbers of users that may call besides root; "*": all
	IdleTimeout     time.Duration // after which a daemon that was started on demand leaves
	StopTimeout     time.Duration // that running calls and the jobs' last checkpoints have when it stops
	MaxCalls        int           // at once, of one user
}

// Jobs holds the settings of jobs.
type Jobs struct {
	Dir          string        // of their logs, an absolute path
	State        string        // the database, an absolute path
	LogBytes     int64         // that are kept of a job's output
	MaxChain     int           // checkpoints in a chain, after which a new one begins
	MaxRetries   int           // attempts in a row to bring a job back
	RestartDelay time.Duration // before the first attempt; doubles with each
	DumpOnStop   bool          // make a checkpoint of each job when the daemon gets SIGTERM
}

// Log holds the settings of the daemon's own log.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
	File   string // where a daemon in the background logs, an absolute path
}

// Trace holds the settings of traces.
type Trace struct {
	Collector string // auto, off, or the URL of a collector of OpenTelemetry
}

// What Trace.Collector can be besides a URL.
const (
	TraceAuto = "auto" // where OpenTelemetry's own variables say so
	TraceOff  = "off"
)

// Default is what holds where nothing is set.
func Default() *Config {
	return &Config{
		Checkpoint: Checkpoint{Dir: "/var/lib/stasis/checkpoints"},
		Daemon: Daemon{
			Socket: "/run/stasis/stasis.sock", IdleTimeout: time.Minute, StopTimeout: time.Minute, MaxCalls: 64,
		},
		Jobs: Jobs{
			Dir: "/var/lib/stasis/jobs", State: "/var/lib/stasis/state.db", LogBytes: 64 << 20, MaxChain: 32, MaxRetries: 5,
			RestartDelay: time.Second, DumpOnStop: true,
		},
		Log:   Log{Level: "info", Format: "text", File: "/var/log/stasis.log"},
		Trace: Trace{Collector: TraceAuto},
	}
}
