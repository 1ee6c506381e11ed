package config

import (
	"fmt"
	"maps"
	"strings"
)

// Value is a setting as it holds.
type Value struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin string `json:"origin"` // "default", file:line, a variable, or a flag
	Help   string `json:"help"`
}

const defaultOrigin = "default"

// Values gives all settings, and where each came from.
func (c *Config) Values() []Value {
	list := make([]Value, len(settings))
	for i, s := range settings {
		list[i] = Value{Key: s.key, Value: s.get(c), Origin: defaultOrigin, Help: s.help}
		if origin := c.origins[s.key]; origin != "" {
			list[i].Origin = origin
		}
	}
	return list
}

// With is a copy in which one setting has another value, as a flag says; origin names the flag.
func (c *Config) With(key, text, origin string) (*Config, error) {
	s, ok := find(key)
	if !ok {
		return nil, fmt.Errorf("there is no setting %s", key)
	}
	changed := *c
	changed.origins = maps.Clone(c.origins)
	if err := changed.set(s, text, origin); err != nil {
		return nil, fmt.Errorf("%s: %w", origin, err)
	}
	return &changed, changed.check()
}

func (c *Config) set(s *setting, text, origin string) error {
	if err := s.set(c, text); err != nil {
		return err
	}
	if c.origins == nil {
		c.origins = make(map[string]string)
	}
	c.origins[s.key] = origin
	return nil
}

// Template is a file in which every setting is explained and none is set.
func Template() string {
	var b strings.Builder
	b.WriteString("# Configuration of Stasis. Every setting is commented out and shows its default, or an example where there is none.\n")
	b.WriteString("# \"stasis config show\" says what holds, and where it came from.\n")
	section := ""
	for _, s := range Settings() {
		in, name, _ := strings.Cut(s.Key, ".")
		if in != section {
			section = in
			fmt.Fprintf(&b, "\n%s:\n", section)
		}
		fmt.Fprintf(&b, "  # %s (%s)\n", capital(s.Help), s.Variable)
		value := s.Default
		if value == "" {
			value = s.Example
		}
		if found, _ := find(s.Key); found.list {
			value = "[" + value + "]"
		}
		fmt.Fprintf(&b, "  # %s: %s\n", name, value)
	}
	return b.String()
}

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
