//go:build linux && (amd64 || arm64)

package shim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client speaks to a shim.
type Client struct {
	dir string
}

// answerWithin bounds the wait for the answer to what takes no time.
const answerWithin = 10 * time.Second

// Launch starts a shim for the job in a folder, which keeps so many bytes of the job's output. The caller has made sure that none
// works there.
func Launch(dir string, keep int64) (*Client, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the job's folder: %w", err)
	}
	listener, err := bind(dir)
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(dir, shimLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the shim's log: %w", err)
	}
	defer log.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{processName, dir, strconv.FormatInt(keep, 10)}, Dir: "/",
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{listener},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shim, which is this program once more: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it may outlive this process
	c := &Client{dir: dir}
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("the shim of the job does not answer, see %s: %w", filepath.Join(dir, shimLog), err)
	}
	return c, nil
}

// bind makes the listening socket. A path of a socket has 107 bytes at most, a folder's may be longer: it is named by its descriptor.
func bind(dir string) (*os.File, error) {
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var file *os.File
	err := inside(dir, func(path string) error {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		defer listener.Close()
		listener.SetUnlinkOnClose(false)
		file, err = listener.File()
		return err
	})
	return file, err
}

// inside calls work with a short path of the socket in a folder.
func inside(dir string, work func(path string) error) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return work("/proc/self/fd/" + strconv.Itoa(int(folder.Fd())) + "/" + socketName)
}

// Connect finds the shim that works in a folder; the error wraps ErrGone if there is none.
func Connect(ctx context.Context, dir string) (*Client, error) {
	c := &Client{dir: dir}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// LastStatus is what a shim that is gone has left. Running in it means that the end was not seen.
func LastStatus(dir string) (Status, error) {
	var status Status
	text, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return status, fmt.Errorf("read the shim's last state: %w", err)
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return status, fmt.Errorf("read the shim's last state: %w", err)
	}
	if status.At != BootID() {
		status.PID, status.Start = 0, 0 // they mean nothing any more
	}
	return status, nil
}

// dial connects.
func (c *Client) dial(ctx context.Context) (conn net.Conn, err error) {
	err = inside(c.dir, func(path string) error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return conn, nil
}

// ask sends a request and waits for its answer. The context's end ends the wait, not the work.
func (c *Client) ask(ctx context.Context, req request) (response, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	r, _, err := exchange(ctx, conn, req)
	return r, err
}

func exchange(ctx context.Context, conn net.Conn, req request) (response, *bufio.Reader, error) {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	failed := func(err error) (response, *bufio.Reader, error) {
		if ctx.Err() != nil {
			return response{}, nil, ctx.Err()
		}
		return response{}, nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	text, err := json.Marshal(req)
	if err != nil {
		return response{}, nil, err
	}
	if _, err := conn.Write(append(text, '\n')); err != nil {
		return failed(err)
	}
	in := bufio.NewReader(conn)
	line, err := readLine(in)
	if err != nil {
		return failed(err)
	}
	var r response
	if err := json.Unmarshal(line, &r); err != nil {
		return response{}, nil, fmt.Errorf("the answer of the job's shim: %w", err)
	}
	switch {
	case r.Error != "" && r.Damaged:
		return r, in, fmt.Errorf("%w: %s", ErrDamaged, r.Error)
	case r.Error != "":
		return r, in, errors.New(r.Error)
	case r.Status == nil:
		return r, in, errors.New("the job's shim answers nothing")
	}
	return r, in, nil
}

func (c *Client) status(ctx context.Context, req request) (Status, error) {
	r, err := c.ask(ctx, req)
	if err != nil {
		return Status{}, err
	}
	return *r.Status, nil
}

// Status asks what the job does.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return c.status(ctx, request{Op: opStatus})
}

// Start begins a run with a command.
func (c *Client) Start(ctx context.Context, command Command) (Status, error) {
	return c.status(ctx, request{Op: opStart, Start: &command})
}

// Restore begins a run with a checkpoint. An error wraps ErrDamaged where the checkpoint is to blame; where it was traced it comes with its spans.
func (c *Client) Restore(ctx context.Context, from Restore) (Status, Restored, error) {
	r, err := c.ask(ctx, request{Op: opRestore, Restore: &from})
	if err != nil && r.Restored != nil {
		return Status{}, Restored{Spans: r.Restored.Spans}, err
	}
	if err != nil {
		return Status{}, Restored{}, err
	}
	if r.Restored == nil {
		return Status{}, Restored{}, errors.New("the job's shim does not say what it restored")
	}
	return *r.Status, *r.Restored, nil
}

// Signal sends a signal to the job's first process, or to its whole tree.
func (c *Client) Signal(ctx context.Context, sig syscall.Signal, tree bool) error {
	_, err := c.status(ctx, request{Op: opSignal, Signal: int(sig), Tree: tree})
	return err
}

// Wait returns when a run has ended, or another has begun.
func (c *Client) Wait(ctx context.Context, run int) (Status, error) {
	return c.status(ctx, request{Op: opWait, Run: run})
}

// Quit ends the shim of a job that does not run.
func (c *Client) Quit(ctx context.Context) error {
	_, err := c.status(ctx, request{Op: opQuit})
	return err
}

// Terminal is a view of a job's console.
type Terminal struct {
	conn net.Conn
	in   *bufio.Reader
	rest []byte

	writing sync.Mutex
}

// Attach looks at the job's console, with a window of so many rows and columns (0: unknown). The caller closes it.
func (c *Client) Attach(ctx context.Context, rows, cols uint16) (*Terminal, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	_, in, err := exchange(ctx, conn, request{Op: opAttach, Rows: rows, Cols: cols})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Terminal{conn: conn, in: in}, nil
}

// Read gives what the job prints, beginning with some of what it printed last; io.EOF when the shim lets go.
func (t *Terminal) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		kind, payload, err := readFrame(t.in)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		if err != nil {
			return 0, err
		}
		if kind == frameData {
			t.rest = payload
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Write types.
func (t *Terminal) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	for done := 0; done < len(p); {
		n := min(len(p)-done, maxFrame)
		if err := writeFrame(t.conn, frameData, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Resize tells of a new size of the window.
func (t *Terminal) Resize(rows, cols uint16) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	return writeFrame(t.conn, frameResize, []byte{byte(rows >> 8), byte(rows), byte(cols >> 8), byte(cols)})
}

// Close ends the view; the job goes on.
func (t *Terminal) Close() error { return t.conn.Close() }
