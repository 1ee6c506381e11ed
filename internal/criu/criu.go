// Package criu drives CRIU, which keeps the kernel state of a process tree:
// it finds the program, speaks its RPC protocol, preloads the library that
// hides memory from it, reads and rewrites its images and explains its errors.
//
// Words: a session is one run of "criu swrk", which serves one request over a
// socket and reports on its way by notifications; the work folder is where
// CRIU puts its images and its log; a hidden range is memory of a frozen
// process that CRIU does not get to see.
//
// A [Session] belongs to one goroutine. [Session.Abandon] alone may be called
// from any goroutine at any time.
package criu

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// PrivatePath is where scripts/install-criu puts a CRIU of its own on systems
// whose own CRIU is too old.
const PrivatePath = "/usr/local/lib/stasis/criu/bin/criu"

// Minimum is the oldest version that is used, as CRIU counts versions:
// major*10000 + minor*100 + sublevel. Older ones cannot dump inet sockets on
// kernels from 6.13 on.
const Minimum = 40200

// ErrNotFound says that no usable CRIU is installed.
var ErrNotFound = errors.New("no usable CRIU found")

// Binary is an installed CRIU.
type Binary struct {
	Path    string
	Version int  // major*10000 + minor*100 + sublevel
	Dynamic bool // loads shared libraries, so that one can be preloaded
}

// VersionString is the version for people: "4.2.1".
func (b *Binary) VersionString() string {
	return fmt.Sprintf("%d.%d.%d", b.Version/10000, b.Version/100%100, b.Version%100)
}

// Find looks for CRIU: at the given path if there is one, else on PATH, else
// at [PrivatePath]. The first that is new enough is taken.
func Find(ctx context.Context, explicit string) (*Binary, error) {
	candidates := []string{explicit}
	if onPath, err := exec.LookPath(explicit); err == nil {
		candidates = []string{onPath}
	}
	if explicit == "" {
		candidates = []string{PrivatePath}
		if onPath, err := exec.LookPath("criu"); err == nil {
			candidates = []string{onPath, PrivatePath}
		}
	}
	var tried []error
	for _, path := range candidates {
		b, err := ask(ctx, path)
		if err == nil {
			return b, nil
		}
		tried = append(tried, err)
	}
	return nil, fmt.Errorf("%w: %w; install CRIU 4.2 or newer, or run install-criu, which is in the folder scripts of the source and in /usr/lib/stasis of the packages", ErrNotFound, errors.Join(tried...))
}

var versionLine = regexp.MustCompile(`Version: (\d+)\.(\d+)(?:\.(\d+))?`)

func probe(ctx context.Context, path string) (*Binary, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w %s", path, err, bytes.TrimSpace(out))
	}
	found := versionLine.FindSubmatch(out)
	if found == nil {
		first, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
		return nil, fmt.Errorf("%s --version says %q, which is no version of CRIU", path, first[:min(len(first), 200)])
	}
	version := 0
	for _, part := range found[1:] {
		number, _ := strconv.Atoi(string(part))
		version = version*100 + number
	}
	if version < Minimum {
		return nil, fmt.Errorf("%s is version %s.%s, older than 4.2", path, found[1], found[2])
	}
	return &Binary{Path: path, Version: version, Dynamic: dynamic(path)}, nil
}

// dynamic says whether a library can be preloaded into the program. A wrapper
// script counts: what it starts inherits the environment.
func dynamic(path string) bool {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if info, err := os.Stat(path); err != nil || info.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
		return false // the loader ignores LD_PRELOAD there
	}
	file, err := elf.Open(path)
	if err != nil {
		return true
	}
	defer file.Close()
	return file.Section(".interp") != nil
}
