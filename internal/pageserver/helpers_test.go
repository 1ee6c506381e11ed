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
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

const page = image.PageSize

// sender speaks the protocol as CRIU does.
type sender struct {
	net.Conn
	layout layout
}

func (s *sender) say(tb testing.TB, cmd, flags uint16, pages, addr, id uint64) {
	tb.Helper()
	if _, err := s.Write(head{cmd, flags, pages, addr, id}.encode(s.layout)); err != nil {
		tb.Fatalf("command %d: %v", cmd, err)
	}
}

func (s *sender) hear(tb testing.TB, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(s, b); err != nil {
		tb.Fatalf("no answer: %v", err)
	}
	return b
}

// open opens a pagemap and returns whether the parent has it.
func (s *sender) open(tb testing.TB, id uint64) bool {
	tb.Helper()
	s.say(tb, cmdOpenAnswer, 0, 0, 0, id)
	return s.hear(tb, 1)[0] == 1
}

func (s *sender) pages(tb testing.TB, id, addr uint64, data []byte) {
	tb.Helper()
	s.say(tb, cmdRun, flagPresent|flagLazy, uint64(len(data)/page), addr, id)
	if _, err := s.Write(data); err != nil {
		tb.Fatal(err)
	}
}

func (s *sender) hole(tb testing.TB, id, addr, pages uint64) {
	tb.Helper()
	s.say(tb, cmdRun, flagParent, pages, addr, id)
}

// close ends the session and returns the server's word.
func (s *sender) close(tb testing.TB) int32 {
	tb.Helper()
	s.say(tb, cmdClose, 0, 0, 0, 0)
	status := int32(binary.LittleEndian.Uint32(s.hear(tb, 4)))
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
	parent *reader.Checkpoint
	silent bool // about the parent
	idle   time.Duration
	fail   func(operation, name string) error
}

func newWriter(tb testing.TB, m store.Target, codecName string, parent *reader.Checkpoint) *writer.Writer {
	tb.Helper()
	return newWriterAt(tb, m, codecName, parent, "../parent")
}

func newWriterAt(tb testing.TB, m store.Target, codecName string, parent *reader.Checkpoint, parentPath string) *writer.Writer {
	tb.Helper()
	c, err := codec.New(codecName, 0)
	if err != nil {
		tb.Fatal(err)
	}
	o := writer.Options{Shards: 3, Codec: c, Parent: parent, ParentPath: parentPath}
	if _, err := rand.Read(o.ID[:]); err != nil {
		tb.Fatal(err)
	}
	w, err := writer.New(m, o)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// receiving starts a server over pipes.
func receiving(tb testing.TB, o rigOptions) *rig {
	tb.Helper()
	if o.codec == "" {
		o.codec = "lz4"
	}
	r := &rig{t: tb, conns: make(chan net.Conn, 4), memory: storetest.NewMemory(), done: make(chan struct{})}
	w := newWriter(tb, r.memory, o.codec, o.parent)
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
	tb.Cleanup(func() { cancel(errors.New("the test is over")); <-r.done })
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
func (r *rig) opened() *reader.Checkpoint {
	r.t.Helper()
	if err := r.wait(); err != nil {
		r.t.Fatal(err)
	}
	c, err := reader.OpenChain(r.memory, func(id [16]byte) (store.Source, error) {
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
func memoryOf(tb testing.TB, c *reader.Checkpoint, pid int) map[uint64][]byte {
	tb.Helper()
	all := map[uint64][]byte{}
	for _, r := range c.ZeroRanges(pid) {
		for a := r.Start; a < r.End; a += page {
			all[a] = make([]byte, page)
		}
	}
	var b reader.Buffer
	for i := range c.Blocks() {
		data, err := c.ReadBlock(i, &b)
		if err != nil {
			tb.Fatal(err)
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
func sameMemory(tb testing.TB, what string, got, want map[uint64][]byte) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Errorf("%s: %d pages, should be %d", what, len(got), len(want))
	}
	for _, addr := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[addr]; !ok {
			tb.Fatalf("%s: there is no page at %#x", what, addr)
		} else if !bytes.Equal(g, want[addr]) {
			tb.Fatalf("%s: the page at %#x is not as it was sent", what, addr)
		}
	}
}

// file reads an image of a checkpoint.
func file(tb testing.TB, c *reader.Checkpoint, name string) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := c.WriteFile(name, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// segment reads a segment of shared memory from a checkpoint.
func segment(tb testing.TB, c *reader.Checkpoint, number uint64) map[uint64][]byte {
	tb.Helper()
	pages, runs, err := criu.DecodePagemap(file(tb, c, sharedName(number)))
	if err != nil {
		tb.Fatal(err)
	}
	return contentOf(tb, runs, file(tb, c, criu.PagesImage(pages)))
}

// contentOf puts the pages of an image to their addresses.
func contentOf(tb testing.TB, runs []criu.PageRun, content []byte) map[uint64][]byte {
	tb.Helper()
	all := map[uint64][]byte{}
	for _, r := range runs {
		if r.Flags&criu.PagePresent == 0 {
			tb.Fatalf("the pages at %#x are elsewhere", r.Start)
		}
		for i := range r.Pages {
			all[r.Start+i*page], content = content[:page], content[page:]
		}
	}
	if len(content) > 0 {
		tb.Errorf("%d bytes belong nowhere", len(content))
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
