package inject

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

func TestHelper(t *testing.T) {
	h, err := StartHelper()
	if err != nil {
		t.Fatal(err)
	}
	target := exec.Command("sleep", "1000")
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { target.Process.Kill(); target.Wait() }()
	for range 3 {
		fd, err := h.Userfaultfd(target.Process.Pid, unix.O_CLOEXEC|unix.O_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	if _, err := h.Userfaultfd(target.Process.Pid, -1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("with bad flags: %v", err)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Userfaultfd(gone.Process.Pid, 0); !errors.Is(err, proc.ErrGone) {
		t.Errorf("of a process that is gone: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Userfaultfd(target.Process.Pid, 0); err == nil {
		t.Error("a closed helper works on")
	}
}

func TestErrorsOfTheHelper(t *testing.T) {
	for _, err := range []error{
		unix.EPERM, fmt.Errorf("it: %w", unix.ENOSYS), fmt.Errorf("thread 3: %w", proc.ErrGone), ErrUnsupported, ErrDispatched, errors.New("some text"),
	} {
		got := decodeError(encodeError(err))
		if got.Error() != err.Error() {
			t.Errorf("%q became %q", err, got)
		}
		for _, kind := range []error{unix.EPERM, unix.ENOSYS, proc.ErrGone, ErrUnsupported, ErrDispatched} {
			if errors.Is(got, kind) != errors.Is(err, kind) {
				t.Errorf("%v: %v is %t on the other side", err, kind, errors.Is(got, kind))
			}
		}
	}
}
