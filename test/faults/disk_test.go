package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
)

// onTmpfs puts the next checkpoint on a file system of its own.
func (s *scene) onTmpfs(options string) (mount string) {
	s.t.Helper()
	mount = s.t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, options); err != nil {
		require.Missing(s.t, "tmpfs", "%v", err)
	}
	s.t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			s.t.Error(err)
		}
	})
	s.dir = filepath.Join(mount, "checkpoint")
	return mount
}

// fillUp takes all the space that is left.
func fillUp(t *testing.T, mount string) {
	t.Helper()
	file, err := os.Create(filepath.Join(mount, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		n, err := file.Write(block)
		if errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2&^4095]
		} else if err != nil {
			t.Fatal(n, err)
		}
	}
}

// wantFailure sees that a dump failed as it should, and harmed nothing.
func (s *scene) wantFailure(w *worker, kind string, says ...string) {
	s.t.Helper()
	o := w.end()
	if o.Err == "" {
		s.t.Error("the dump succeeded")
	}
	if o.Kind != kind {
		s.t.Errorf("its error is of kind %q, should be %q: %s", o.Kind, kind, o.Err)
	}
	for _, part := range says {
		if !strings.Contains(o.Err, part) {
			s.t.Errorf("the message does not say %q: %s", part, o.Err)
		}
	}
	s.nothingLeft(w)
	s.swept(w)
	s.unharmed()
	if s.checkpoint() {
		s.t.Error("there is a checkpoint")
	}
}

// TestDiskFull: at the beginning, and at each step that writes.
func TestDiskFull(t *testing.T) {
	s := newScene(t)
	t.Run("first copy", func(t *testing.T) {
		s := s.in(t)
		s.onTmpfs("size=4m")
		w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill})
		s.wantFailure(w, "", s.dir, "the disk is full: free some space")
	})
	for _, point := range []string{pointCopying, "freeze", "state", "write", "publish"} {
		t.Run(point, func(t *testing.T) {
			s := s.in(t)
			mount := s.onTmpfs("size=128m")
			p := plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill, Wait: []string{point}}
			if point == "freeze" {
				p.FinalBuffer = 1 // nearly all is written in the freeze
			}
			w := start(t, p)
			w.reach(point)
			fillUp(t, mount)
			w.goOn()
			s.wantFailure(w, "", s.dir, "the disk is full: free some space")
			if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the folder of the checkpoint is left (%v)", err)
			}
		})
	}
	if !t.Failed() {
		s.dump(stasis.AfterKill)
		s.restore(false)
	}
}

// TestBadFolders cannot take a checkpoint from the start.
func TestBadFolders(t *testing.T) {
	s := newScene(t)
	for _, test := range []struct {
		name string
		make func(s *scene)
		kind string
		says string
	}{
		{"read-only", func(s *scene) {
			mount := s.onTmpfs("size=1m")
			if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				s.t.Fatal(err)
			}
		}, "input", "the file system is read-only: choose a folder on another one"},
		{"no parent", func(s *scene) { s.dir = filepath.Join(s.dir, "below") }, "input", "parent must exist"},
		{"a file", func(s *scene) {
			if err := os.WriteFile(s.dir, nil, 0o600); err != nil {
				s.t.Fatal(err)
			}
		}, "input", "not a folder"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := s.in(t)
			s.newDir()
			test.make(s)
			w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill})
			o := w.end()
			if o.Kind != test.kind || !strings.Contains(o.Err, test.says) || !strings.Contains(o.Err, s.dir) {
				t.Errorf("an error of kind %q that should be %q, of %s, and say %q: %s", o.Kind, test.kind, s.dir, test.says, o.Err)
			}
			s.nothingLeft(w)
			s.unharmed()
		})
	}
}

// TestFolderGone: somebody removes the folder, or puts another in its place.
func TestFolderGone(t *testing.T) {
	s := newScene(t)
	for _, replace := range []bool{false, true} {
		for _, point := range []string{"copy", "state", "publish"} {
			t.Run(fmt.Sprintf("%s/replaced=%t", point, replace), func(t *testing.T) {
				s := s.in(t)
				s.newDir()
				w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill, Wait: []string{point}})
				w.reach(point)
				if err := os.RemoveAll(s.dir); err != nil {
					t.Fatal(err)
				}
				if replace {
					if err := os.Mkdir(s.dir, 0o700); err != nil {
						t.Fatal(err)
					}
				}
				w.goOn()
				s.wantFailure(w, "", s.dir, "dump again")
				if _, err := os.Stat(s.dir); (err == nil) != replace {
					t.Errorf("the folder is there: %t, should be %t", err == nil, replace)
				}
			})
		}
	}
}
