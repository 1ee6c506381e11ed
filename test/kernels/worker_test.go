package kernels

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	workerVariable = "STASIS_KERNELS_WORKER"
	workerPages    = 4096
	patience       = 60 * time.Second
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerVariable); dir != "" {
		work(dir)
		return
	}
	os.Exit(m.Run())
}

// work is the program that is dumped: it does as the message "order" in its folder
// says, and answers with "answer". What its memory must hold is a
// function of page and version, and the versions are kept apart.
func work(dir string) {
	memory, err := unix.Mmap(-1, 0, workerPages*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	// Soft-dirty has one bit for a huge page, and what is copied is counted here.
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	versions := make([]uint64, workerPages) // 0: dropped, and zeros
	page := func(n int) []byte { return memory[n*proc.PageSize:][:proc.PageSize] }
	random := rand.New(rand.NewPCG(1, 2))
	for answered := ""; ; <-time.After(time.Millisecond) {
		order, _ := os.Readlink(filepath.Join(dir, "order"))
		if order == answered || order == "" {
			continue
		}
		answered = order
		var number, n int
		var verb string
		fmt.Sscan(order, &number, &verb, &n)
		answer := "done"
		switch verb {
		case "fill":
			for i := range workerPages {
				versions[i]++
				fill(page(i), i, versions[i])
			}
		case "write":
			for range n {
				i := random.IntN(workerPages)
				versions[i]++
				fill(page(i), i, versions[i])
			}
		case "drop": // and read some, which become the page of zeros
			for range n {
				i := random.IntN(workerPages)
				versions[i] = 0
				_ = unix.Madvise(page(i), unix.MADV_DONTNEED)
				if random.IntN(2) == 0 && page(i)[1] != 0 {
					answer = "a dropped page is not of zeros"
				}
			}
		case "prove":
			for i := range workerPages {
				if bad := prove(page(i), i, versions[i]); bad != "" {
					answer = bad
					break
				}
			}
		}
		write(filepath.Join(dir, "answer"), fmt.Sprintf("%d %s", number, answer))
	}
}

func word(page int, version uint64, at int) uint64 {
	if version == 0 {
		return 0
	}
	x := uint64(page)<<40 ^ version<<16 ^ uint64(at) ^ 0x9e3779b97f4a7c15
	x ^= x >> 29
	return x * 0xbf58476d1ce4e5b9
}

func fill(memory []byte, page int, version uint64) {
	for at := 0; at < len(memory); at += 8 {
		binary.NativeEndian.PutUint64(memory[at:], word(page, version, at))
	}
}

func prove(memory []byte, page int, version uint64) string {
	for at := 0; at < len(memory); at += 8 {
		if got := binary.NativeEndian.Uint64(memory[at:]); got != word(page, version, at) {
			return fmt.Sprintf("page %d at %d is %#x, want %#x of version %d", page, at, got, word(page, version, at), version)
		}
	}
	return ""
}

// write leaves a message: a symbolic link to its text, which can be read without
// opening a file. One that is open in a dump has to be the same at the restore.
func write(path, text string) {
	_ = os.Remove(path + ".new")
	_ = os.Symlink(text, path+".new")
	_ = os.Rename(path+".new", path)
}

// worker is a running worker.
type worker struct {
	t      *testing.T
	dir    string
	pid    int
	orders int
}

func startWorker(t *testing.T) *worker {
	t.Helper()
	w := &worker{t: t, dir: t.TempDir()}
	log, err := os.Create(filepath.Join(w.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{workerVariable + "=" + w.dir}
	cmd.Dir = w.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	_ = cmd.Process.Release() // reap does it, for restored ones as well
	t.Cleanup(func() {
		w.kill()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the worker said: %s", text)
		}
	})
	return w
}

// do gives an order and waits until it is done.
func (w *worker) do(format string, args ...any) {
	w.t.Helper()
	w.orders++
	order := fmt.Sprintf("%d ", w.orders) + fmt.Sprintf(format, args...)
	write(filepath.Join(w.dir, "order"), order)
	for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		text, _ := os.Readlink(filepath.Join(w.dir, "answer"))
		number, answer, _ := strings.Cut(text, " ")
		if number == fmt.Sprint(w.orders) {
			if answer != "done" {
				w.t.Fatalf("order %q: %s", order, answer)
			}
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no answer to order %q within %v", order, patience)
		}
	}
}

// kill ends the worker, if it runs, and waits for its end.
func (w *worker) kill() {
	if w.pid == 0 {
		return
	}
	_ = unix.Kill(w.pid, unix.SIGKILL)
	w.reap()
}

// reap waits for the end of the worker, which is this process' child.
func (w *worker) reap() {
	w.t.Helper()
	for {
		_, err := unix.Wait4(w.pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	w.pid = 0
}
