package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/store"
)

func TestPageServerBadInput(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "checkpoint")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{}, []string{"--images-dir is missing"}},
		{[]string{"-D", dir, "--port", "70000"}, []string{"--port"}},
		{[]string{"-D", dir, "--port", port}, []string{"address already in use", "--port"}},
		{[]string{"-D", dir, "--stream", "0"}, []string{"1 to 1024"}},
		{[]string{"-D", dir, "--compression", "lz4", "--level", "77"}, []string{"no level 77"}},
		{[]string{"-D", dir, "--idle-timeout", "-1s"}, []string{"negative"}},
		{[]string{"-D", dir, "--tls-no-cn-verify"}, []string{"--tls is missing"}},
		{[]string{"-D", dir, "--tls-cert", "x"}, []string{"--tls is missing"}},
		{[]string{"-D", dir, "--tls", "--tls-cert", "/no/such/file"}, []string{"/no/such/file"}},
		{[]string{"-D", dir, "--ps-socket", "77"}, []string{"--ps-socket 77"}},
		{[]string{"-D", dir, "--ps-socket", "77", "--port", "1"}, []string{"leave --address and --port out"}},
		{[]string{"-D", dir, "--daemon", "--status-fd", "3"}, []string{"choose one"}},
		{[]string{"-D", dir, "--daemon", "--ps-socket", "3"}, []string{"--daemon"}},
		{[]string{"-D", dir, "--lazy-pages"}, []string{"no checkpoint"}},
		{[]string{"-D", dir, "--lazy-pages", "--parent", "x"}, []string{"--lazy-pages gives"}},
		{[]string{"-D", dir, "--auto-dedup"}, []string{"--parent"}},
		{[]string{"-D", dir, "--prev-images-dir", "../none"}, []string{"the parent", "there is no folder", "--parent"}},
		{[]string{"-D", dir, "--parent", "x", "--prev-images-dir", "y"}, []string{"choose one"}},
		{[]string{"-D", filepath.Join(dir, "a", "b")}, []string{"make it first"}},
		{[]string{"-D", dir, "extra"}, []string{"unexpected argument"}},
	} {
		b.says(exitInput, append([]string{"page-server", "-q"}, test.args...), test.says...)
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%v: the folder was made", test.args)
		}
	}
	full := filepath.Join(t.TempDir(), "full")
	checkpoint(t, full, nil)
	b.says(exitConflict, []string{"page-server", "-q", "-D", full}, "already exists")
}

// message is one of CRIU 4.2's.
func message(cmd uint32, pages, addr, id uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, cmd)
	b = append(b, 0, 0, 0, 0)
	for _, v := range []uint64{pages, addr, id} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// send plays a whole session of a sender, of three pages of process 4711.
func send(conn net.Conn) (answer []byte, err error) {
	page := bytes.Repeat([]byte("abcd"), image.PageSize/4)
	return sendPages(conn, bytes.Join([][]byte{page, make([]byte, image.PageSize), page}, nil))
}

func sendPages(conn net.Conn, data []byte) (answer []byte, err error) {
	defer conn.Close()
	const all = 0x1023
	for _, part := range [][]byte{
		message(3, 0, 0, 4711<<8|1), message(4<<16|6, uint64(len(data)/image.PageSize), 0x10000, 4711<<8|1), data, message(all, 0, 0, 0),
	} {
		if _, err := conn.Write(part); err != nil {
			return nil, err
		}
	}
	answer = make([]byte, 4)
	_, err = io.ReadFull(conn, answer)
	return answer, err
}

func TestPageServer(t *testing.T) {
	b := newBench(t)
	base := t.TempDir()
	checkpoint(t, filepath.Join(base, "parent"), nil)
	if err := os.Mkdir(filepath.Join(base, "linked"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../parent", filepath.Join(base, "linked", "parent")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args      []string
		shards    int
		hasParent bool
	}{
		"plain":  {[]string{"--stream", "3", "--compression", "none"}, 3, false},
		"prev":   {[]string{"--prev-images-dir", "../parent", "--stream", "1"}, 1, true},
		"parent": {[]string{"--parent", filepath.Join(base, "parent"), "--stream", "1"}, 1, true},
		"linked": {[]string{"--stream", "1"}, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(base, name)
			if name == "parent" {
				dir = filepath.Join(base, "other")
			}
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			file := os.NewFile(uintptr(fds[0]), "sender")
			conn, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			answer := make(chan error, 1)
			go func() {
				got, err := send(conn)
				if err == nil && !bytes.Equal(got, make([]byte, 4)) {
					err = io.ErrUnexpectedEOF
				}
				answer <- err
			}()
			args := []string{"page-server", "-o", "json", "-D", dir, "--ps-socket", strconv.Itoa(fds[1]), "--pidfile", "pid"}
			if code := b.run(append(args, test.args...)...); code != exitOK {
				t.Fatalf("exit code %d: %s %s", code, b.out.String(), b.err.String())
			}
			if err := <-answer; err != nil {
				t.Errorf("the sender hears: %v", err)
			}
			var r receivedReport
			b.document(&r)
			if r.Pages != 3 || r.Processes != 1 || r.Streams != test.shards || r.Dir != dir || (r.Parent != "") != test.hasParent || r.Figures.ZeroPages != 1 {
				t.Errorf("it tells %+v", r)
			}
			if pid, err := os.ReadFile(filepath.Join(dir, "pid")); err != nil || string(pid) != strconv.Itoa(os.Getpid()) {
				t.Errorf("the file of the pid has %q, %v", pid, err)
			}
			if test.hasParent {
				if r.Figures.BytesReferenced != 2*image.PageSize {
					t.Errorf("%d bytes are the parent's", r.Figures.BytesReferenced)
				}
				folder, err := store.OpenFolder(dir)
				if err != nil {
					t.Fatal(err)
				}
				m, err := image.ReadManifest(folder)
				if err != nil || len(m.Origins) != 1 || m.Origins[0].Path != "../parent" {
					t.Errorf("its ancestors are %+v, %v", m.Origins, err)
				}
			}
			if code := b.run("verify", dir); code != exitOK {
				t.Errorf("verify: %s", b.err.String())
			}
		})
	}
}

// A server that waits, and one whose sender is gone, leaves nothing behind.
func TestPageServerLeavesNothing(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "checkpoint")
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fds[0], message(3, 0, 0, 4711<<8|1)); err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[0])
	b.says(exitFailure, []string{"page-server", "-D", dir, "--ps-socket", strconv.Itoa(fds[1])}, "without saying that all was sent")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is still there")
	}
	begun := time.Now()
	fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	b.says(exitFailure, []string{"page-server", "-D", dir, "--ps-socket", strconv.Itoa(fds[1]), "--idle-timeout", "50ms"}, "turned away", "50ms")
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
	if text := b.err.String(); strings.Contains(text, "listening") {
		t.Errorf("it says that it listens: %q", text)
	}
}

// Whoever listens to other machines without TLS is warned; to this one alone it needs no warning.
func TestPageServerWarnsOfClearText(t *testing.T) {
	b := newBench(t)
	for address, warned := range map[string]bool{"0.0.0.0": true, "127.0.0.1": false, "::1": false, "localhost": false} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		b.out.Reset()
		b.err.Reset()
		code := b.app.run(ctx, []string{"page-server", "-D", filepath.Join(t.TempDir(), "x"), "--address", address, "--port", "0"})
		cancel()
		text := b.err.String()
		if code == exitInput && strings.Contains(text, "cannot assign") {
			continue // a machine without IPv6
		}
		if code != exitFailure || !strings.Contains(text, "listening on") {
			t.Errorf("%s: %d, %q", address, code, text)
		}
		if strings.Contains(text, "clear text") != warned {
			t.Errorf("%s: it says %q", address, text)
		}
	}
}

// With --auto-dedup the parent loses what the new checkpoint replaces, and says so from then on; the new one is whole.
func TestPageServerGivesSpaceBack(t *testing.T) {
	b := newBench(t)
	base := t.TempDir()
	first, second := filepath.Join(base, "first"), filepath.Join(base, "second")
	different := make([]byte, 600*image.PageSize)
	for _, args := range [][]string{{"-D", first}, {"-D", second, "--parent", first, "--auto-dedup"}} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fds[0]), "sender")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		for i := range different { // half of it is as before, the rest is not
			if i > len(different)/2 || args[1] == first {
				different[i] = byte(rand.Uint32())
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := sendPages(conn, different)
			done <- err
		}()
		args = append([]string{"page-server", "-o", "json", "--compression", "none", "--stream", "1", "--ps-socket", strconv.Itoa(fds[1])}, args...)
		if code := b.run(args...); code != exitOK {
			t.Fatalf("exit code %d: %s %s", code, b.out.String(), b.err.String())
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	var r receivedReport
	b.document(&r)
	if half := int64(len(different) / 2); r.Freed < half*3/4 || r.Freed > half || r.Figures.BytesStored > half*11/10 {
		t.Errorf("of %d bytes, half of them new, it gave back %d and stored %d", len(different), r.Freed, r.Figures.BytesStored)
	}
	if code := b.run("verify", second); code != exitOK {
		t.Errorf("the new one: %s", b.err.String())
	}
	if code := b.run("page-server", "-q", "-D", filepath.Join(base, "third"), "--parent", first); code == exitOK || !strings.Contains(b.err.String(), "parent") {
		t.Errorf("the old one is still taken for a parent: %d, %s", code, b.err.String())
	}
}
