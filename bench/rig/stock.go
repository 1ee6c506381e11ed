package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"stasis/internal/criu"
)

// Stock is stock CRIU.
type Stock struct {
	Path    string
	Version string // "4.2.1"
}

// FindStock finds the CRIU that Stasis uses as well.
func FindStock(ctx context.Context) (*Stock, error) {
	found, err := criu.Find(ctx, "")
	if err != nil {
		return nil, err
	}
	return &Stock{Path: found.Path, Version: found.VersionString()}, nil
}

// Dump dumps a tree into a new folder and lets it run on, and then makes the
// images durable: a checkpoint that a power cut takes away is none. took is the
// time for both. More flags of "criu dump" can be given.
func (s *Stock) Dump(ctx context.Context, pid int, dir string, flags ...string) (took time.Duration, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := s.run(ctx, "dump", dir, append([]string{"--tree", strconv.Itoa(pid)}, flags...)); err != nil {
		return 0, err
	}
	if err := Sync(dir); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}

// Restore restores a tree in the usual, eager way and lets it go.
func (s *Stock) Restore(ctx context.Context, dir string, flags ...string) (took time.Duration, err error) {
	begun := time.Now()
	err = s.run(ctx, "restore", dir, append([]string{"--restore-detached"}, flags...))
	return time.Since(begun), err
}

func (s *Stock) run(ctx context.Context, command, dir string, flags []string) error {
	log := filepath.Join(dir, command+".log")
	args := append([]string{command, "--images-dir", dir, "--log-file", log}, flags...)
	out, err := exec.CommandContext(ctx, s.Path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("criu %s: %w%s%s", command, err, bytes.TrimSpace(out), lastErrors(log))
	}
	return nil
}

// lastErrors are the errors at the end of CRIU's log.
func lastErrors(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Error (") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return "\n  " + strings.Join(found[max(0, len(found)-3):], "\n  ")
}

// FolderBytes is how many bytes the files of a folder have.
func FolderBytes(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}
