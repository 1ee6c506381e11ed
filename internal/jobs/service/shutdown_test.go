package service

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGoesDown(t *testing.T) {
	for _, test := range []struct {
		name, script string
		none         bool // systemd is not the first process
		want         bool
		says         string
	}{
		{name: "shutdown", script: "echo stopping; exit 1", want: true},
		{name: "all is well", script: "echo running"},
		{name: "a unit has failed", script: "echo degraded; exit 1"},
		{name: "no answer", script: "echo Failed to connect to bus >&2; exit 1"},
		{name: "no systemctl", says: "cannot ask systemd"},
		{name: "no systemd", script: "echo stopping; exit 1", none: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin, booted := t.TempDir(), t.TempDir()
			if test.script != "" {
				text := "#!/bin/sh\n[ \"$*\" = is-system-running ] || exit 9\n" + test.script + "\n"
				if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin)
			if test.none {
				booted = filepath.Join(booted, "none")
			}
			var said strings.Builder
			if got := goesDown(booted, slog.New(slog.NewTextHandler(&said, nil))); got != test.want {
				t.Errorf("it goes down: %v", got)
			}
			if test.says == "" && said.Len() > 0 || !strings.Contains(said.String(), test.says) {
				t.Errorf("it says %q", said.String())
			}
		})
	}
}
