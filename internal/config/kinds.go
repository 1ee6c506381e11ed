package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

type duration = time.Duration

// setting is one key: how its text is read and shown.
type setting struct {
	key     string
	example string
	help    string
	list    bool
	set     func(c *Config, text string) error
	get     func(c *Config) string
}

func (s *setting) variable() string {
	return prefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

func count(key, example, help string, most int, at func(*Config) *int) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return strconv.Itoa(*at(c)) },
		set: func(c *Config, text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n > most {
				return fmt.Errorf("%q: it is a number from 1 to %d, or 0: %s", text, most, help)
			}
			*at(c) = n
			return nil
		},
	}
}

func bytesOf(key, example, help string, at func(*Config) *int64) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return inBytes(*at(c)) },
		set: func(c *Config, text string) error {
			n, err := units.RAMInBytes(text)
			if err != nil || n < 0 {
				return fmt.Errorf("%q: it is a number of bytes, such as 4096, 64K, 1M or 2G", text)
			}
			*at(c) = n
			return nil
		},
	}
}

// inBytes writes a number with the largest unit that leaves it whole, so that it can be read back.
func inBytes(n int64) string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if by := int64(1) << (40 - 10*i); n != 0 && n%by == 0 {
			return strconv.FormatInt(n/by, 10) + unit
		}
	}
	return strconv.FormatInt(n, 10)
}

func span(key, example, help string, at func(*Config) *duration) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return at(c).String() },
		set: func(c *Config, text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 {
				return fmt.Errorf("%q: it is a time, such as 30s or 5m", text)
			}
			*at(c) = d
			return nil
		},
	}
}

func truth(key, help string, at func(*Config) *bool) setting {
	return setting{
		key: key, example: "false", help: help,
		get: func(c *Config) string { return strconv.FormatBool(*at(c)) },
		set: func(c *Config, text string) error {
			switch strings.ToLower(text) {
			case "true", "yes", "on", "1":
				*at(c) = true
			case "false", "no", "off", "0":
				*at(c) = false
			default:
				return fmt.Errorf("%q: it is true or false", text)
			}
			return nil
		},
	}
}

func path(key, example, help string, at func(*Config) *string) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return *at(c) },
		set: func(c *Config, text string) error {
			if !filepath.IsAbs(text) {
				return fmt.Errorf("%q: it is an absolute path, such as %s", text, example)
			}
			*at(c) = filepath.Clean(text)
			return nil
		},
	}
}

func address(key, example, help string, at func(*Config) *string) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return *at(c) },
		set: func(c *Config, text string) error {
			if text != "" {
				if _, _, err := net.SplitHostPort(text); err != nil {
					return fmt.Errorf("%q: it is an address with a port, such as %s", text, example)
				}
			}
			*at(c) = text
			return nil
		},
	}
}

// loopback is an address that only this machine can reach.
func loopback(key, example, help string, at func(*Config) *string) setting {
	return setting{
		key: key, example: example, help: help,
		get: func(c *Config) string { return *at(c) },
		set: func(c *Config, text string) error {
			if text != "" {
				host, port, err := net.SplitHostPort(text)
				if err != nil {
					return fmt.Errorf("%q: it is an address with a port, such as %s", text, example)
				}
				if _, err := strconv.ParseUint(port, 10, 16); err != nil {
					return fmt.Errorf("%q: the port is a number up to 65535", text)
				}
				if ip := net.ParseIP(host); ip == nil {
					return fmt.Errorf("%q: write the address as a number, such as %s: what a name means can change", text, example)
				} else if !ip.IsLoopback() {
					return fmt.Errorf("%q is no loopback address: others on the network could see it, without encryption. Use one such as %s, and from another "+
						"machine a tunnel: ssh -L", text, example)
				}
			}
			*at(c) = text
			return nil
		},
	}
}

func word(key, help string, valid []string, at func(*Config) *string) setting {
	return setting{
		key: key, example: valid[0], help: help,
		get: func(c *Config) string { return *at(c) },
		set: func(c *Config, text string) error {
			if !slices.Contains(valid, text) {
				return fmt.Errorf("%q: it is one of %s", text, strings.Join(valid, ", "))
			}
			*at(c) = text
			return nil
		},
	}
}

func words(key, example, help string, at func(*Config) *[]string) setting {
	return setting{
		key: key, example: example, help: help, list: true,
		get: func(c *Config) string { return strings.Join(*at(c), ", ") },
		set: func(c *Config, text string) error {
			var list []string
			for part := range strings.SplitSeq(text, ",") {
				if part = strings.TrimSpace(part); part != "" {
					list = append(list, part)
				}
			}
			*at(c) = list
			return nil
		},
	}
}
