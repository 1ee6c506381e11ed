// Package config reads the settings of Stasis: from a file in YAML or JSON, and from the environment, which has precedence.
// Flags of the commands come after both and are not its business.
//
// Words: a key is the path of a setting, such as checkpoint.stream; its variable is the same in capitals with STASIS_ in front,
// such as STASIS_CHECKPOINT_STREAM.
//
// Nothing here keeps state: everything may be called from several goroutines at once.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// DefaultPath is the file that is read where no other is named. It need not exist.
	DefaultPath = "/etc/stasis/config.yaml"
	// PathVariable names another file in the environment.
	PathVariable = "STASIS_CONFIG"

	prefix = "STASIS_"
	// maxFile bounds the size of a file: nobody writes that much by hand.
	maxFile = 1 << 20
)

// Load reads the settings. path is the file; where it is empty, the one that PathVariable names, else [DefaultPath], which alone
// may be missing. environ has the form of os.Environ.
//
// An unknown key or variable and a value that makes no sense are errors that say where they are and what is right.
func Load(path string, environ []string) (*Config, error) {
	c, variables := Default(), ours(environ)
	named := path != ""
	if path == "" {
		path, named = variables[PathVariable]
	}
	if path == "" {
		path, named = DefaultPath, false
	}
	delete(variables, PathVariable)
	c.path = path
	if err := c.readFile(path); err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	if err := c.readVariables(variables); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// WhereIs is the file that Load would read.
func WhereIs(path string, environ []string) string {
	if path == "" {
		path = ours(environ)[PathVariable]
	}
	if path == "" {
		path = DefaultPath
	}
	return path
}

// ours picks the variables of Stasis.
func ours(environ []string) map[string]string {
	found := make(map[string]string)
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, prefix) {
			found[name] = value
		}
	}
	return found
}

func (c *Config) readFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return fmt.Errorf("read the configuration %s: %w", path, err)
	}
	if len(text) > maxFile {
		return fmt.Errorf("the configuration %s is larger than 1 MiB: is it the right file?", path)
	}
	return c.parse(path, text)
}

// parse reads one YAML document, of which JSON is a part.
func (c *Config) parse(path string, text []byte) error {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil // empty, or comments alone
	} else if err != nil {
		return fmt.Errorf("the configuration %s is neither YAML nor JSON: %w", path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the configuration %s goes on after its end (---): write one document", path)
	}
	p := parser{config: c, path: path, seen: make(map[string]int)}
	return p.mapping("", document.Content[0])
}

// parser walks a document. It knows lines, which a decoder into structs would have lost by the time that a key is found wrong.
type parser struct {
	config *Config
	path   string
	seen   map[string]int // line of each key
}

func (p *parser) mapping(section string, node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil // "checkpoint:" with everything in it commented out
	}
	if node.Kind != yaml.MappingNode {
		return p.fail(node, "expected keys such as %s", example(section))
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := node.Content[i].Value
		if section != "" {
			key = section + "." + key
		}
		if err := p.entry(key, node.Content[i], node.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) entry(key string, at, value *yaml.Node) error {
	if line, twice := p.seen[key]; twice {
		return p.fail(at, "%s is set already in line %d", key, line)
	}
	p.seen[key] = at.Line
	if isSection(key) {
		return p.mapping(key, value)
	}
	s, ok := find(key)
	if !ok {
		return p.fail(at, "unknown key %s: did you mean %s?", key, nearest(key, keys()))
	}
	if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
		return nil
	}
	text, err := scalar(s, value)
	if err != nil {
		return p.fail(value, "%s %w", key, err)
	}
	if err := p.config.set(s, text, fmt.Sprintf("%s:%d", p.path, at.Line)); err != nil {
		return p.fail(value, "%s: %w", key, err)
	}
	return nil
}

// scalar is a value as a variable would have it: lists are written with commas there.
func scalar(s *setting, value *yaml.Node) (string, error) {
	switch {
	case value.Kind == yaml.ScalarNode:
		return value.Value, nil
	case value.Kind != yaml.SequenceNode || !s.list:
		return "", fmt.Errorf("takes one value, such as %s", s.example)
	}
	var words []string
	for _, item := range value.Content {
		if item.Kind != yaml.ScalarNode || strings.Contains(item.Value, ",") {
			return "", fmt.Errorf("takes a list of words, such as [%s]", s.example)
		}
		words = append(words, item.Value)
	}
	return strings.Join(words, ","), nil
}

func (p *parser) fail(at *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("the configuration %s, line %d: %w", p.path, at.Line, fmt.Errorf(format, args...))
}

// readVariables sets what the environment says. Names that begin like a setting must be one: a misspelt one that is ignored
// is found much later.
func (c *Config) readVariables(variables map[string]string) error {
	for i := range settings {
		s := &settings[i]
		value, ok := variables[s.variable()]
		if !ok {
			continue
		}
		if err := c.set(s, value, s.variable()); err != nil {
			return fmt.Errorf("the variable %s: %w", s.variable(), err)
		}
	}
	for name := range variables {
		section, _, ok := strings.Cut(strings.ToLower(strings.TrimPrefix(name, prefix)), "_")
		if !ok || !isSection(section) {
			continue
		}
		if names := variableNames(); nearest(name, names) != name {
			return fmt.Errorf("unknown variable %s: did you mean %s?", name, nearest(name, names))
		}
	}
	return nil
}
