package pageserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

const page = image.PageSize

// sender speaks the protocol as CRIU does.
type sender struct {
	net.Conn
	layout layout
}

func (s *sender) say(t testing.TB, cmd, flags uint16, pages, addr, id uint64) {
	t.Helper()
	if _, err := s.Write(head{cmd, flags, pages, addr, id}.encode(s.layout)); err != nil {
		t.Fatalf("command %d: %v", cmd, err)
	}
}

func (s *sender) hear(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(s, b); err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return b
}

// open opens a pagemap and returns whether the parent has it.
func (s *sender) open(t testing.TB, id uint64) bool {
	t.Helper()
	s.say(t, cmdOpenAnswer, 0, 0, 0, id)
	return s.hear(t, 1)[0] == 1
}

func (s *sender) pages(t testing.TB, id, addr uint64, data []byte) {
	t.Helper()
	s.say(t, cmdRun, flagPresent|flagLazy, uint64(len(data)/page), addr, id)
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
}

func (s *sender) hole(t testing.TB, id, addr, pages uint64) {
	t.Helper()
	s.say(t, cmdRun, flagParent, pages, addr, id)
}

// close ends the session and returns the server's word.
func (s *sender) close(t testing.TB) int32 {
	t.Helper()
	s.say(t, cmdClose, 0, 0, 0, 0)
	status := int32(binary.LittleEndian.Uint32(s.hear(t, 4)))
	s.Close()
	return status
}

// rig is a server that waits for connections over pipes.
type rig struct {
	t      testing.TB
	conns  chan net.Conn
	memory *storetest.Memory
	done   chan struct{}
	got    *Received
	err    error
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	turned []error // guarded by mu
}

type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

type rigOptions struct {
	codec  string
	parent *image.Checkpoint
	silent bool // about the parent
	idle   time.Duration
	fail   func(operation, name string) error
}

func newWriter(t testing.TB, m store.Target, codecName string, parent *image.Checkpoint) *image.Writer {
	t.Helper()
	return newWriterAt(t, m, codecName, parent, "../parent")
}

func newWriterAt(t testing.TB, m store.Target, codecName string, parent *image.Checkpoint, parentPath string) *image.Writer {
	t.Helper()
	c, err := codec.New(codecName, 0)
	if err != nil {
		t.Fatal(err)
	}
	o := image.WriterOptions{Shards: 3, Codec: c, Parent: parent, ParentPath: parentPath}
	if _, err := rand.Read(o.ID[:]); err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(m, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// receiving starts a server over pipes.
func receiving(t testing.TB, o rigOptions) *rig {
	t.Helper()
	if o.codec == "" {
		o.codec = "lz4"
	}
	r := &rig{t: t, conns: make(chan net.Conn, 4), memory: storetest.NewMemory(), done: make(chan struct{})}
	w := newWriter(t, r.memory, o.codec, o.parent)
	r.memory.Fail = o.fail
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	l := &closing{pipes: pipes(r.conns), closed: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.got, r.err = Receive(ctx, l, ReceiveOptions{
			ServerOptions: ServerOptions{Idle: o.idle, Note: r.note}, Writer: w, Parent: o.parent, Announce: !o.silent, Stasis: "test", Name: "name",
		})
	}()
	t.Cleanup(func() { cancel(errors.New("the test is over")); <-r.done })
	return r
}

// closing is a listener whose Accept ends when it is closed.
type closing struct {
	pipes
	closed chan struct{}
	once   sync.Once
}

func (c *closing) Accept() (net.Conn, error) {
	select {
	case conn := <-c.pipes:
		return conn, nil
	case <-c.closed:
		return nil, net.ErrClosed
	}
}

func (c *closing) Close() error { c.once.Do(func() { close(c.closed) }); return nil }

func (r *rig) note(_ string, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turned = append(r.turned, why)
}

func (r *rig) turnedAway() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.turned)
}

// connect connects a sender.
func (r *rig) connect(l layout) *sender {
	here, there := net.Pipe()
	r.conns <- there
	r.t.Cleanup(func() { here.Close() })
	return &sender{here, l}
}

const soon = 20 * time.Second

// wait waits for the end of the server.
func (r *rig) wait() error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(soon):
		r.t.Fatal("the server does not end")
	}
	return r.err
}

// refused waits for the end of a server that must leave nothing.
func (r *rig) refused() error {
	r.t.Helper()
	err := r.wait()
	if err == nil {
		r.t.Fatal("the server says that all is well")
	}
	if _, there := r.memory.Manifest(); there == nil {
		r.t.Error("there is a checkpoint")
	}
	if !r.memory.Aborted {
		r.t.Error("what was written was not removed")
	}
	return err
}

// opened is the checkpoint of a server that has ended well.
func (r *rig) opened() *image.Checkpoint {
	r.t.Helper()
	if err := r.wait(); err != nil {
		r.t.Fatal(err)
	}
	c, err := image.OpenChain(r.memory, func(id [16]byte) (store.Source, error) {
		if ancestor, ok := ancestors.Load(hex.EncodeToString(id[:])); ok {
			return ancestor.(*storetest.Memory), nil
		}
		return nil, errors.New("there is no such ancestor")
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ancestors.Store(c.Manifest().ID, r.memory)
	r.t.Cleanup(func() { c.Close() })
	return c
}

// ancestors has all checkpoints of the tests by their ids.
var ancestors sync.Map

// memoryOf reads all pages of a process.
func memoryOf(t testing.TB, c *image.Checkpoint, pid int) map[uint64][]byte {
	t.Helper()
	all := map[uint64][]byte{}
	for _, r := range c.ZeroRanges(pid) {
		for a := r.Start; a < r.End; a += page {
			all[a] = make([]byte, page)
		}
	}
	var b image.Buffer
	for i := range c.Blocks() {
		data, err := c.ReadBlock(i, &b)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Block(i).Pieces {
			for n := range p.Pages {
				if p.PID == pid {
					from := int(p.First+n) * page
					all[p.Addr+uint64(n)*page] = bytes.Clone(data[from : from+page])
				}
			}
		}
	}
	return all
}

// sameMemory compares page by page.
func sameMemory(t testing.TB, what string, got, want map[uint64][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d pages, should be %d", what, len(got), len(want))
	}
	for _, addr := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[addr]; !ok {
			t.Fatalf("%s: there is no page at %#x", what, addr)
		} else if !bytes.Equal(g, want[addr]) {
			t.Fatalf("%s: the page at %#x is not as it was sent", what, addr)
		}
	}
}

// file reads an image of a checkpoint.
func file(t testing.TB, c *image.Checkpoint, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := c.WriteFile(name, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// segment reads a segment of shared memory from a checkpoint.
func segment(t testing.TB, c *image.Checkpoint, number uint64) map[uint64][]byte {
	t.Helper()
	all := map[uint64][]byte{}
	r := mapReader{from: bytes.NewReader(file(t, c, sharedName(number)))}
	pages, err := r.begin()
	if err != nil {
		t.Fatal(err)
	}
	content := file(t, c, pagesName(pages))
	for behind := uint64(0); ; {
		at, err := r.next(behind)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for behind = at.End; at.Start < at.End; at.Start += page {
			all[at.Start], content = content[:page], content[page:]
		}
	}
	if len(content) > 0 {
		t.Errorf("%d bytes of segment %d belong nowhere", len(content), number)
	}
	return all
}

// stub is a connection that gives what it has and then ends; what is said to it is lost.
type stub struct {
	net.Conn
	in io.Reader
}

func (s *stub) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *stub) Write(p []byte) (int, error)      { return len(p), nil }
func (s *stub) Close() error                     { return nil }
func (s *stub) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *stub) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *stub) SetReadDeadline(time.Time) error  { return nil }
func (s *stub) SetWriteDeadline(time.Time) error { return nil }
