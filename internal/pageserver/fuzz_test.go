package pageserver

import (
	"bytes"
	"testing"

	"stasis/internal/image/reader"
	"stasis/internal/store/storetest"
)

// FuzzHead: whatever is decoded encodes to what it was but for the padding, and no range leaves the address space.
func FuzzHead(f *testing.F) {
	for _, l := range []layout{shortLayout, longLayout} {
		f.Add(head{cmdRun, flagPresent, 3, 1 << 20, 5<<8 | 1}.encode(l))
		f.Add(append(head{cmdOpenAnswer, 0, 0, 0, 5<<8 | 2}.encode(l), make([]byte, 8)...))
		f.Add(append(head{cmdGet, 0, 16, 1 << 20, 5}.encode(l), make([]byte, 8)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < int(longLayout) {
			return
		}
		for _, l := range []layout{shortLayout, longLayout} {
			h := decodeHead(l, b[:l])
			if again := decodeHead(l, h.encode(l)); again != h {
				t.Errorf("%+v becomes %+v", h, again)
			}
			if r, err := h.rng(); err == nil && (r.End < r.Start || r.End > maxAddr || r.Len() != h.pages*page) {
				t.Errorf("%+v has the range %#x-%#x", h, r.Start, r.End)
			}
			if p, err := decodePagemap(h.id); err == nil && !p.shared && (p.number == 0 || p.number > maxPID) {
				t.Errorf("%#x is process %d", h.id, p.number)
			}
			if _, err := h.kind(); err == nil && h.flags&^7 != 0 && h.cmd == cmdRun {
				t.Errorf("flags %#x are taken", h.flags)
			}
		}
		// What our own peers begin with is told apart.
		for _, l := range []layout{shortLayout, longLayout} {
			h := decodeHead(l, b[:l])
			h.cmd, h.pages, h.addr = cmdOpenAnswer, 0, 0
			if _, err := decodePagemap(h.id); err != nil {
				continue
			}
			if got, err := layoutOf(append(h.encode(l), make([]byte, 8)...)[:24]); err != nil || got != l {
				t.Errorf("the layout of %d bytes is taken for %d, %v", l, got, err)
			}
		}
	})
}

// FuzzSession plays any bytes to a server, first to one without a parent, then to one that has some memory. It ends, and there is
// a checkpoint only where the peer said that all is sent, and that checkpoint is whole.
func FuzzSession(f *testing.F) {
	script := func(l layout, kind uint64, tail ...head) []byte {
		b := head{cmdOpenAnswer, 0, 0, 0, 5<<8 | kind}.encode(l)
		b = append(b, head{cmdRun, flagPresent | flagLazy, 2, 1 << 20, 5<<8 | kind}.encode(l)...)
		b = append(b, bytes.Repeat([]byte{3}, 2*page)...)
		for _, h := range tail {
			b = append(b, h.encode(l)...)
		}
		return b
	}
	for _, l := range []layout{shortLayout, longLayout} {
		for _, kind := range []uint64{1, 2} {
			f.Add(script(l, kind))
			f.Add(script(l, kind, head{cmd: cmdClose}))
			f.Add(script(l, kind, head{cmdRun, flagParent, 1, 1<<20 + 2*page, 5<<8 | kind}, head{cmd: cmdClose}))
			f.Add(script(l, kind, head{cmdOpenAnswer, 0, 0, 0, 6<<8 | 1}, head{cmdParent, 0, 0, 0, 6<<8 | 1}, head{cmd: cmdForceClose}))
		}
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	first := receiving(f, rigOptions{})
	s := first.connect(longLayout)
	for _, id := range []uint64{5<<8 | 1, 5<<8 | 2} {
		s.open(f, id)
		s.pages(f, id, 1<<20, bytes.Repeat([]byte{1}, 5*page))
	}
	s.close(f)
	parent := first.opened()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []*reader.Checkpoint{nil, parent} {
			playSession(t, b, p)
		}
	})
}

func playSession(t *testing.T, b []byte, parent *reader.Checkpoint) {
	t.Helper()
	memory := storetest.NewMemory()
	g := &stub{in: bytes.NewReader(b)}
	w := newWriter(t, memory, "none", parent)
	got, err := Receive(t.Context(), Single(g), ReceiveOptions{Writer: w, Parent: parent, Announce: true})
	if err != nil {
		if _, there := memory.Manifest(); there == nil || !memory.Aborted {
			t.Error("it failed and left something")
		}
		return
	}
	if !bytes.Contains(b, []byte{0x23, 0x10}) && !bytes.Contains(b, []byte{0x24, 0x10}) {
		t.Error("there is a checkpoint, and nobody said that all is sent")
	}
	r := &rig{t: t, memory: memory, done: make(chan struct{}), got: got}
	close(r.done)
	if err := r.opened().Verify(t.Context(), 1, nil); err != nil {
		t.Error(err)
	}
}
