// Package storetest tests what keeps checkpoints: [Run] is what every store.Target and store.Source must pass, [Memory] is one
// in memory whose operations can be made to fail.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"stasis/internal/store"
)

// Memory is a checkpoint in memory: a target, and a source once it is committed. All methods may be called at once, but Files
// and Text, which tests change to damage the checkpoint, belong to one goroutine.
type Memory struct {
	// Fail, where it is set, is asked before each operation (create, write, finish, commit, open) on a file and can make it
	// fail. It may be called from several goroutines.
	Fail func(operation, name string) error

	mu        sync.Mutex
	writers   map[string]*memoryWriter // guarded by mu
	Files     map[string][]byte        // the shards, after Commit
	Text      []byte                   // the manifest, after Commit
	Aborted   bool
	committed bool
}

var (
	_ store.Target = (*Memory)(nil)
	_ store.Source = (*Memory)(nil)
)

// NewMemory makes an empty one.
func NewMemory() *Memory { return &Memory{writers: map[string]*memoryWriter{}} }

func (m *Memory) fails(operation, name string) error {
	if m.Fail == nil {
		return nil
	}
	return m.Fail(operation, name)
}

// Name is always the same.
func (m *Memory) Name() string { return "memory" }

// Create starts a file.
func (m *Memory) Create(name string) (store.Writer, error) {
	if err := m.fails("create", name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended() || m.writers[name] != nil || !goodName(name) {
		return nil, fmt.Errorf("cannot create %q: %w, or the checkpoint has ended, or the name is bad", name, store.ErrExists)
	}
	m.writers[name] = &memoryWriter{m: m, name: name}
	return m.writers[name], nil
}

func goodName(name string) bool {
	return name != "" && len(name) < 65 && name != store.ManifestName && name[0] != '.' && !bytes.ContainsAny([]byte(name), "/\n ")
}

func (m *Memory) ended() bool { return m.committed || m.Aborted }

// Commit publishes the files.
func (m *Memory) Commit(manifest []byte) error {
	if err := m.fails("commit", store.ManifestName); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended() || len(manifest) == 0 {
		return errors.New("cannot commit: the checkpoint has ended, or its manifest is empty")
	}
	files := map[string][]byte{}
	for name, w := range m.writers {
		if !w.finished {
			return fmt.Errorf("cannot commit: %s was not finished", name)
		}
		files[name] = w.b.Bytes()
	}
	m.Files, m.Text, m.committed = files, bytes.Clone(manifest), true
	return nil
}

// Abort drops everything, unless it was committed.
func (m *Memory) Abort() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Aborted = !m.committed
	return nil
}

// Manifest returns the manifest.
func (m *Memory) Manifest() ([]byte, error) {
	if !m.committed {
		return nil, store.ErrNoCheckpoint
	}
	return bytes.Clone(m.Text), nil
}

// Open opens a file, which is not a copy.
func (m *Memory) Open(name string) (store.File, error) {
	if err := m.fails("open", name); err != nil {
		return nil, err
	}
	b, ok := m.Files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return memoryFile{bytes.NewReader(b)}, nil
}

// Copy returns a committed checkpoint that shares nothing with m.
func (m *Memory) Copy() *Memory {
	c := &Memory{Files: map[string][]byte{}, Text: slices.Clone(m.Text), committed: m.committed}
	for name, b := range m.Files {
		c.Files[name] = slices.Clone(b)
	}
	return c
}

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Fd() uintptr  { return ^uintptr(0) }
func (memoryFile) Close() error { return nil }

type memoryWriter struct {
	m                 *Memory
	name              string
	b                 bytes.Buffer
	finished, aborted bool
}

var _ store.Rereader = (*memoryWriter)(nil)

func (w *memoryWriter) Write(p []byte) (int, error) {
	if err := w.m.fails("write", w.name); err != nil {
		return 0, err
	}
	if w.finished || w.aborted {
		return 0, errors.New("it has ended")
	}
	return w.b.Write(p)
}

func (w *memoryWriter) Finish() error {
	if err := w.m.fails("finish", w.name); err != nil {
		return err
	}
	if w.finished || w.aborted {
		return errors.New("it has ended")
	}
	w.finished = true
	return nil
}

func (w *memoryWriter) Abort() error {
	w.aborted, w.finished = true, false
	return nil
}

func (w *memoryWriter) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(w.b.Bytes()).ReadAt(p, off)
	if n == len(p) {
		err = nil
	}
	return n, err
}
