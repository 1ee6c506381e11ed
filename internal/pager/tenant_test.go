//go:build linux && (amd64 || arm64)

package pager

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/uffd"
)

const (
	base     = 0x10_0000_0000
	deadline = 30 * time.Second
	zero     = -1 // asks a tenant whether pages are zero

	// tenantPID is what a tenant says to be: the pid of the checkpoint's process.
	tenantPID = 4711
)

var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "pager"); err != nil {
		panic(err)
	}
	m.Run()
	os.RemoveAll(buildDir)
}

//go:embed testdata/tenant.c
var tenantSource string

// tenantProgram builds testdata/tenant.c: only C forks a process of many threads.
var tenantProgram = sync.OnceValues(func() (string, error) {
	program := filepath.Join(buildDir, "tenant")
	gcc := exec.Command("gcc", "-O1", "-x", "c", "-", "-o", program, "-lpthread")
	gcc.Stdin = strings.NewReader(tenantSource)
	out, err := gcc.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	return program, nil
})

func requireUserfaultfd(tb testing.TB) {
	tb.Helper()
	f, err := uffd.New(0)
	if err != nil {
		tb.Skipf("requires userfaultfd(2): %v", err)
	}
	defer f.Close()
	if _, err := f.API(uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap); err != nil {
		tb.Skipf("requires userfaultfd events (CAP_SYS_PTRACE): %v", err)
	}
}

// tenant is a process whose memory the pager fills. See testdata/tenant.c.
type tenant struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan string
}

// move starts a tenant in the work directory dir, where a pager listens.
func move(tb testing.TB, dir string, pages int, extra ...string) *tenant {
	tb.Helper()
	program, err := tenantProgram()
	if err != nil {
		tb.Fatal(err)
	}
	n := &tenant{t: tb, answers: make(chan string, 16)}
	n.cmd = exec.Command(program, append([]string{dir, fmt.Sprint(base), fmt.Sprint(pages)}, extra...)...)
	n.cmd.Stderr = os.Stderr
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		defer close(n.answers)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n.answers <- lines.Text()
		}
	}()
	tb.Cleanup(n.kill)
	n.expect("armed")
	return n
}

func (n *tenant) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
}

// tell sends a command, expect waits for its answer, ask does both and wants "ok".
func (n *tenant) tell(format string, args ...any) {
	n.t.Helper()
	if _, err := fmt.Fprintf(n.in, format+"\n", args...); err != nil {
		n.t.Fatal(err)
	}
}

func (n *tenant) answer() string {
	n.t.Helper()
	select {
	case line, ok := <-n.answers:
		if !ok {
			n.t.Fatal("the tenant has ended")
		}
		return line
	case <-time.After(deadline):
		n.t.Fatalf("no answer from the tenant within %v", deadline)
		return ""
	}
}

func (n *tenant) expect(want string) {
	n.t.Helper()
	if got := n.answer(); got != want {
		n.t.Fatalf("the tenant says %q, want %q", got, want)
	}
}

func (n *tenant) ask(format string, args ...any) {
	n.t.Helper()
	n.tell(format, args...)
	if got := n.answer(); got != "ok" {
		n.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

// pattern is a checkpoint of one process with the pages that tenant.c expects.
// Every 16th page is zero, another 16th is not in the checkpoint.
type pattern struct {
	pages    int
	perBlock int
	before   func(block int) error // called by ReadBlock

	mu      sync.Mutex
	read    map[int]int               // how often a block was read
	buffers map[*reader.Buffer][]byte // image.Buffer is opaque, so its space is here
}

func newPattern(pages, perBlock int) *pattern {
	return &pattern{pages: pages, perBlock: perBlock, read: map[int]int{}, buffers: map[*reader.Buffer][]byte{}}
}

func kindOf(page int) image.Kind {
	switch page % 16 {
	case 3:
		return image.Zero
	case 7:
		return image.Absent
	}
	return image.Data
}

func (s *pattern) Blocks() int { return (s.pages + s.perBlock - 1) / s.perBlock }

func (s *pattern) Block(i int) image.BlockInfo {
	var info image.BlockInfo
	first := uint32(0)
	for page := i * s.perBlock; page < min((i+1)*s.perBlock, s.pages); page++ {
		if kindOf(page) != image.Data {
			continue
		}
		addr := uint64(base + page*pageSize)
		if n := len(info.Pieces); n > 0 && info.Pieces[n-1].Addr+uint64(info.Pieces[n-1].Pages)*pageSize == addr {
			info.Pieces[n-1].Pages++
		} else {
			info.Pieces = append(info.Pieces, image.Piece{PID: tenantPID, Addr: addr, Pages: 1, First: first})
		}
		first++
	}
	return info
}

func (s *pattern) Pieces(i int, list []image.Piece) []image.Piece {
	return append(list, s.Block(i).Pieces...)
}

func (s *pattern) Bytes(i int) (n int64) {
	for _, piece := range s.Block(i).Pieces {
		n += int64(piece.Pages) * pageSize
	}
	return n
}

func (s *pattern) ReadBlock(i int, b *reader.Buffer) ([]byte, error) {
	s.mu.Lock()
	s.read[i]++
	data := s.buffers[b]
	if data == nil {
		data = make([]byte, s.perBlock*pageSize)
		s.buffers[b] = data
	}
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(i); err != nil {
			return nil, err
		}
	}
	n := 0
	for page := i * s.perBlock; page < min((i+1)*s.perBlock, s.pages); page++ {
		if kindOf(page) == image.Data {
			writePage(data[n*pageSize:], page)
			n++
		}
	}
	return data[:n*pageSize], nil
}

func writePage(b []byte, page int) {
	for j := range pageSize / 8 {
		x := uint64(page*pageSize/8+j+1) * 0x9e3779b97f4a7c15
		binary.NativeEndian.PutUint64(b[8*j:], x^x>>29)
	}
}

func (s *pattern) Find(pid int, addr uint64) (block int, page uint32, kind image.Kind) {
	n := int(addr-base) / pageSize
	if pid != tenantPID || addr < base || n >= s.pages {
		return 0, 0, image.Absent
	}
	block = n / s.perBlock
	for i := block * s.perBlock; i < n; i++ {
		if kindOf(i) == image.Data {
			page++
		}
	}
	return block, page, kindOf(n)
}

func (s *pattern) PIDs() []int { return []int{tenantPID} }

func (s *pattern) Ranges(pid int) []image.Range {
	var out []image.Range
	for page := range s.pages {
		addr := uint64(base + page*pageSize)
		switch n := len(out); {
		case pid != tenantPID || kindOf(page) == image.Absent:
		case n > 0 && out[n-1].End == addr:
			out[n-1].End += pageSize
		default:
			out = append(out, image.Range{Start: addr, End: addr + pageSize})
		}
	}
	return out
}

// house is a pager with a tenant.
type house struct {
	*tenant
	pager  *Pager
	errors chan error
}

// open starts a pager for src and a tenant in it.
func open(tb testing.TB, src Source, pages int, o Options, extra ...string) *house {
	tb.Helper()
	return openEarly(tb, func() (Source, error) { return src, nil }, pages, o, extra...)
}

// openEarly is open with a checkpoint whose memory is known only later.
func openEarly(tb testing.TB, load func() (Source, error), pages int, o Options, extra ...string) *house {
	tb.Helper()
	requireUserfaultfd(tb)
	h := &house{errors: make(chan error, 1)}
	o.OnError = func(err error) { h.errors <- err }
	o.HostPID = func(pid int) int {
		if pid != tenantPID {
			tb.Errorf("asked for the pid of process %d", pid)
		}
		return h.cmd.Process.Pid
	}
	dir := tb.TempDir()
	p, err := ListenEarly(dir, load, o)
	if err != nil {
		tb.Fatal(err)
	}
	h.pager = p
	tb.Cleanup(func() {
		if h.tenant != nil {
			h.kill()
		}
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
		select {
		case err := <-h.errors:
			tb.Errorf("the pager failed: %v", err)
		default:
		}
	})
	h.tenant = move(tb, dir, pages, extra...)
	return h
}

// fill runs Fill to its end.
func (h *house) fill() {
	h.t.Helper()
	if err := <-h.startFill(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) startFill() chan error {
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	go func() {
		defer cancel()
		done <- h.pager.Fill(ctx)
	}()
	return done
}

func (h *house) wantFilled(done chan error) {
	h.t.Helper()
	if err := <-done; err != nil {
		h.t.Fatal(err)
	}
}
