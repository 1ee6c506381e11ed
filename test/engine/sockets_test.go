package engine

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/subject"
)

const socketVariable = "STASIS_TEST_SOCKET"

// unaccepted connects to a socket on which nobody accepts.
func unaccepted(say func(string, ...any), hear func() (string, bool)) {
	connection, err := net.Dial("unix", os.Getenv(socketVariable))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	say("connected")
	for _, ok := hear(); ok; _, ok = hear() {
		say("here")
	}
}

// TestAConnectionThatNobodyHasAccepted: CRIU dumps it without a word, and cannot
// restore it. The process must not be ended for such a checkpoint.
func TestAConnectionThatNobodyHasAccepted(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	t.Setenv(socketVariable, path)
	s := subject.Start(t, "unaccepted")
	s.Hear()

	for _, after := range []stasis.After{stasis.AfterKill, stasis.AfterRun} {
		dir := filepath.Join(t.TempDir(), "checkpoint")
		_, err = stasis.Dump(t.Context(), stasis.DumpOptions{
			PID: s.PID, Dir: dir, After: after, CRIU: stasis.CRIUOptions{ExtUnixSk: true, ShellJob: true},
		})
		if !errors.Is(err, stasis.ErrProcess) || !strings.Contains(err.Error(), "waits to be accepted") {
			t.Errorf("%s: %v; want that a socket waits to be accepted", after, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: the dump left a folder (%v)", after, err)
		}
		if answer := s.Ask("there?"); answer != "here" {
			t.Errorf("%s: the process says %q", after, answer)
		}
	}
}
