package config

import (
	"fmt"
	"path/filepath"
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
	Help     string
}

// Settings lists all keys.
func Settings() []Setting {
	list := make([]Setting, len(settings))
	for i, s := range settings {
		list[i] = Setting{Key: s.key, Variable: s.variable(), Default: s.fallback, Help: s.help}
	}
	return list
}

type setting struct {
	key      string
	fallback string
	example  string
	help     string
	set      func(c *Config, text string) error
}

func (s *setting) variable() string {
	return prefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

var settings = []setting{
	{
		key: "checkpoint.stream", fallback: "0", example: "4",
		help: "how many files a checkpoint is written to in parallel; 0 is one for each CPU",
		set: func(c *Config, text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n > image.MaxShards {
				return fmt.Errorf("%q: it is a number from 1 to %d, or 0 for one for each CPU", text, image.MaxShards)
			}
			c.Checkpoint.Stream = n
			return nil
		},
	},
	{
		key: "checkpoint.dir", fallback: Default().Checkpoint.Dir, example: "/srv/checkpoints",
		help: "the default folder: where checkpoints go that are made by name",
		set: func(c *Config, text string) error {
			if !filepath.IsAbs(text) {
				return fmt.Errorf("%q: it is an absolute path, such as /srv/checkpoints", text)
			}
			c.Checkpoint.Dir = filepath.Clean(text)
			return nil
		},
	},
	{
		key: "checkpoint.compression", example: "zstd",
		help: "codec of new checkpoints: " + strings.Join(codec.Names(), ", "),
		set: func(c *Config, text string) error {
			if _, err := codec.New(text, 0); err != nil {
				return err
			}
			c.Checkpoint.Compression = text
			return nil
		},
	},
	{
		key: "checkpoint.level", fallback: "0", example: "3",
		help: "level of the codec; 0 is its default",
		set: func(c *Config, text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 {
				return fmt.Errorf("%q: it is a whole number, or 0 for the codec's default", text)
			}
			c.Checkpoint.Level = n
			return nil
		},
	},
}

// check looks at settings that depend on each other, which may come from different places.
func (c *Config) check() error {
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
