package config

import (
	"regexp"
	"strings"
	"testing"
)

// What is shown can be read back: of every setting the default, and the example.
func TestShownValuesCanBeRead(t *testing.T) {
	for i := range settings {
		s := &settings[i]
		for _, text := range []string{s.get(Default()), s.example} {
			if text == "" {
				continue
			}
			c := Default()
			if err := s.set(c, text); err != nil {
				t.Errorf("%s: %v", s.key, err)
				continue
			}
			again := Default()
			if err := s.set(again, s.get(c)); err != nil || s.get(again) != s.get(c) {
				t.Errorf("%s: %q was read as %q and then as %q (%v)", s.key, text, s.get(c), s.get(again), err)
			}
		}
	}
}

// A new file sets nothing, and with the comments taken off every line is a good setting.
func TestTemplate(t *testing.T) {
	text := Template()
	c, err := Load(write(t, text), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range c.Values() {
		if v.Origin != "default" {
			t.Errorf("%s is set by %s", v.Key, v.Origin)
		}
	}
	active := regexp.MustCompile(`(?m)^  # ([a-z_]+: )`).ReplaceAllString(text, "  $1")
	active = strings.ReplaceAll(active, "  level: 0\n", "")
	if c, err = Load(write(t, active), nil); err != nil {
		t.Fatalf("%v in\n%s", err, active)
	}
	for _, v := range c.Values() {
		if v.Origin == "default" && v.Key != "checkpoint.level" {
			t.Errorf("the template has no line for %s", v.Key)
		}
	}
}

func TestOrigins(t *testing.T) {
	file := write(t, "checkpoint:\n  stream: 4\ndaemon:\n  allow_users: [alice, 1001]\n  idle_timeout: 90s\n")
	c, err := Load(file, []string{"STASIS_CHECKPOINT_STREAM=7", "STASIS_CHECKPOINT_BANDWIDTH=10M"})
	if err != nil {
		t.Fatal(err)
	}
	flagged, err := c.With("daemon.socket", "/tmp/x.sock", "--socket")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Value)
	for _, v := range flagged.Values() {
		got[v.Key] = v
	}
	for key, want := range map[string][2]string{
		"checkpoint.stream":    {"7", "STASIS_CHECKPOINT_STREAM"},
		"checkpoint.bandwidth": {"10M", "STASIS_CHECKPOINT_BANDWIDTH"},
		"daemon.allow_users":   {"alice, 1001", file + ":4"},
		"daemon.idle_timeout":  {"1m30s", file + ":5"},
		"daemon.socket":        {"/tmp/x.sock", "--socket"},
		"log.level":            {"info", "default"},
	} {
		if v := got[key]; v.Value != want[0] || v.Origin != want[1] {
			t.Errorf("%s is %q from %q, not %q from %q", key, v.Value, v.Origin, want[0], want[1])
		}
	}
	if c.Daemon.Socket != Default().Daemon.Socket {
		t.Error("With changed the original")
	}
}

func TestBadValues(t *testing.T) {
	for _, test := range []struct{ text, says string }{
		{"daemon: {tcp: \":8443\"}", "without TLS"},
		{"daemon: {tcp: \"8443\"}", "an address with a port"},
		{"daemon: {allow_users: {a: b}}", "takes one value"},
		{"daemon: {allow_users: [[a]]}", "list of words"},
		{"daemon: {idle_timeout: 5}", "such as 30s"},
		{"daemon: {sokcet: /x}", "daemon.socket?"},
		{"jobs: {dump_on_stop: maybe}", "true or false"},
		{"log: {level: loud}", "debug, info"},
		{"checkpoint: {nice: 20}", "0 to 19"},
		{"checkpoint: {bandwidth: fast}", "64K"},
	} {
		if _, err := Load(write(t, test.text), nil); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v does not say %q", test.text, err, test.says)
		}
	}
}
