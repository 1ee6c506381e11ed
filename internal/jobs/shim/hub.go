package shim

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
)

const (
	recentSize   = 4 << 10 // of what was printed last, for who attaches
	viewerBuffer = 256     // pieces of output that a viewer may be behind
)

// hub hands on what a job prints: to the log, and to whoever is attached. It outlives the job's runs.
type hub struct {
	mu      sync.Mutex
	log     *logFile
	recent  []byte
	viewers map[*viewer]struct{}
	console *console // of the present run
	rows    uint16
	cols    uint16
}

// viewer is somebody who is attached.
type viewer struct {
	conn net.Conn
	out  chan []byte // closed when the viewer is too slow, or all is over
}

// use makes a console the present one.
func (h *hub) use(c *console) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.console = c
	if c != nil {
		c.resize(h.rows, h.cols)
	}
}

// pump copies a console's output until its end.
func (h *hub) pump(c *console) {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.ours.Read(buf)
		if n > 0 {
			h.mu.Lock()
			_, _ = h.log.Write(buf[:n])
			h.keepRecent(buf[:n])
			h.show(bytes.Clone(buf[:n]))
			h.mu.Unlock()
		}
		if err != nil {
			return // EIO of a terminal, EOF of a pipe: nobody has the other end any more
		}
	}
}

// keepRecent keeps the last output, from the beginning of a line. With h.mu held.
func (h *hub) keepRecent(b []byte) {
	h.recent = append(h.recent, b...)
	if len(h.recent) < 2*recentSize {
		return
	}
	h.recent = append([]byte(nil), h.recent[len(h.recent)-recentSize:]...)
	if _, after, found := bytes.Cut(h.recent, []byte{'\n'}); found {
		h.recent = after
	}
}

// show gives output to the viewers. One that does not read is let go: a job never waits for a viewer. With h.mu held.
func (h *hub) show(b []byte) {
	for v := range h.viewers {
		select {
		case v.out <- b:
		default:
			h.drop(v)
		}
	}
}

// notice tells viewers, and not the log, of something.
func (h *hub) notice(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.show([]byte("\r\n[stasis: " + text + "]\r\n"))
}

func (h *hub) drop(v *viewer) {
	if _, ok := h.viewers[v]; ok {
		delete(h.viewers, v)
		close(v.out)
	}
}

// close lets all viewers go.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.viewers {
		h.drop(v)
	}
}

// attach serves a viewer until it leaves.
func (h *hub) attach(conn net.Conn, rows, cols uint16) {
	v := &viewer{conn: conn, out: make(chan []byte, viewerBuffer)}
	h.mu.Lock()
	if len(h.recent) > 0 {
		v.out <- bytes.Clone(h.recent)
	}
	h.viewers[v] = struct{}{}
	h.mu.Unlock()
	h.resize(rows, cols, true)

	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range v.out {
			for len(b) > 0 {
				n := min(len(b), maxFrame)
				if writeFrame(conn, frameData, b[:n]) != nil {
					break
				}
				b = b[n:]
			}
		}
		conn.Close() // ends the reading below too
	}()
	_ = h.input(conn)
	h.mu.Lock()
	h.drop(v)
	h.mu.Unlock()
	conn.Close() // ends a write to a viewer that does not read
	<-done
}

// input passes on what a viewer types.
func (h *hub) input(conn io.Reader) error {
	for {
		kind, payload, err := readFrame(conn)
		switch {
		case err != nil:
			return err
		case kind == frameResize && len(payload) == 4:
			h.resize(uint16(payload[0])<<8|uint16(payload[1]), uint16(payload[2])<<8|uint16(payload[3]), false)
		case kind == frameData:
			h.mu.Lock()
			c := h.console
			h.mu.Unlock()
			if c == nil || !c.tty {
				continue // typed while the job is being restored, or it has no terminal
			}
			if _, err := c.ours.Write(payload); err != nil && !errors.Is(err, net.ErrClosed) {
				continue // the run has ended
			}
		}
	}
}

// resize sets the size of the terminal. With redraw the job is told of a change even where there is none, so that it paints its screen
// for the new viewer.
func (h *hub) resize(rows, cols uint16, redraw bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rows == 0 || cols == 0 {
		return
	}
	h.rows, h.cols = rows, cols
	if h.console == nil {
		return
	}
	if redraw {
		h.console.resize(rows, cols+1)
	}
	h.console.resize(rows, cols)
}
