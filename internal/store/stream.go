package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// streamTarget writes a checkpoint as one stream of frames.
type streamTarget struct {
	mu     sync.Mutex
	w      io.Writer       // guarded by mu
	seq    uint64          // guarded by mu: of the next frame
	err    error           // guarded by mu: the first of w; nothing is written after it
	files  []*streamWriter // guarded by mu
	closed bool            // guarded by mu
}

var _ Target = (*streamTarget)(nil)

// NewStream writes a checkpoint into w, in the form that Receive takes. w is not closed. What Commit promises ends at w: that
// the other side stored the checkpoint is known only there.
func NewStream(w io.Writer) Target { return &streamTarget{w: w} }

// put writes a frame, whose data begins at f[frameHeader].
func (t *streamTarget) put(kind frameType, file uint32, f []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.putLocked(kind, file, f)
}

func (t *streamTarget) putLocked(kind frameType, file uint32, f []byte) error {
	if t.err != nil {
		return t.err
	}
	if t.seq == 0 {
		start := make([]byte, frameHeader, frameHeader+4)
		start = binary.LittleEndian.AppendUint32(start, frameVersion)
		if err := t.sendLocked(frameStart, 0, start); err != nil {
			return err
		}
	}
	return t.sendLocked(kind, file, f)
}

func (t *streamTarget) sendLocked(kind frameType, file uint32, f []byte) error {
	sealFrame(f, kind, file, t.seq)
	t.seq++
	if _, err := t.w.Write(f); err != nil {
		if errors.Is(err, unix.EPIPE) {
			t.err = fmt.Errorf("cannot write the checkpoint's stream: %w: the program that reads it ended: look at its message", err)
		} else {
			t.err = fmt.Errorf("cannot write the checkpoint's stream: %w", err)
		}
	}
	return t.err
}

func (t *streamTarget) Create(name string) (Writer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("cannot create %s: the checkpoint's stream was committed or aborted already", name)
	}
	if len(t.files) == maxFiles {
		return nil, fmt.Errorf("cannot create %s: a checkpoint has at most %d files: use fewer shards", name, maxFiles)
	}
	for _, f := range t.files {
		if f.name == name {
			return nil, fmt.Errorf("cannot create %s: it %w in this stream", name, ErrExists)
		}
	}
	f := &streamWriter{t: t, name: name, number: uint32(len(t.files))}
	begin := append(make([]byte, frameHeader, frameHeader+len(name)), name...)
	if err := t.putLocked(frameBegin, f.number, begin); err != nil {
		return nil, err
	}
	t.files = append(t.files, f)
	return f, nil
}

func (t *streamTarget) Commit(manifest []byte) error {
	if err := checkManifest(manifest); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errors.New("cannot commit: the checkpoint's stream was committed or aborted already")
	}
	for _, f := range t.files {
		if !f.finished {
			return fmt.Errorf("cannot commit the checkpoint's stream: %s was not finished", f.name)
		}
	}
	m := append(make([]byte, frameHeader, frameHeader+len(manifest)), manifest...)
	if err := t.putLocked(frameManifest, 0, m); err != nil {
		return err
	}
	if err := t.putLocked(frameEnd, 0, make([]byte, frameHeader)); err != nil {
		return err
	}
	t.closed = true
	return nil
}

// Abort tells the reading side, which would otherwise only see the stream end. Where that can't be told, it need not be.
func (t *streamTarget) Abort() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	_ = t.putLocked(frameAbort, 0, make([]byte, frameHeader))
	return nil
}

// streamWriter collects a file's bytes and sends them frame by frame.
type streamWriter struct {
	t        *streamTarget
	name     string
	number   uint32
	buf      []byte // a frame being filled
	finished bool
	aborted  bool
}

var _ Writer = (*streamWriter)(nil)

func (f *streamWriter) Write(p []byte) (int, error) {
	if f.finished || f.aborted {
		return 0, fmt.Errorf("cannot write to %s: it was finished or aborted already", f.name)
	}
	if f.buf == nil {
		f.buf = make([]byte, frameHeader, frameHeader+frameData)
	}
	written := 0
	for len(p) > 0 {
		n := copy(f.buf[len(f.buf):cap(f.buf)], p)
		f.buf = f.buf[:len(f.buf)+n]
		p = p[n:]
		written += n
		if len(f.buf) == cap(f.buf) {
			if err := f.send(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (f *streamWriter) send() error {
	err := f.t.put(frameFile, f.number, f.buf)
	f.buf = f.buf[:frameHeader]
	return err
}

func (f *streamWriter) Finish() error {
	if f.finished || f.aborted {
		return fmt.Errorf("cannot finish %s: it was finished or aborted already", f.name)
	}
	if len(f.buf) > frameHeader {
		if err := f.send(); err != nil {
			return err
		}
	}
	f.buf = nil
	if err := f.t.put(frameFinish, f.number, make([]byte, frameHeader)); err != nil {
		return err
	}
	f.finished = true
	return nil
}

// Abort drops what was not sent; the stream as a whole can then only be aborted, because Commit wants every file finished.
func (f *streamWriter) Abort() error {
	f.aborted, f.finished, f.buf = true, false, nil
	return nil
}
