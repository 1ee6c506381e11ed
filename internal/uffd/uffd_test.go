//go:build linux && (amd64 || arm64)

package uffd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// armed returns a userfaultfd over fresh anonymous memory of this process.
func armed(t *testing.T, features uint64, pages int, mode uint64) (*FD, []byte, uint64) {
	t.Helper()
	f, err := New(unix.O_NONBLOCK)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skipf("requires userfaultfd(2): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.API(features); err != nil {
		f.Close()
		t.Skipf("requires userfaultfd features %#x: %v", features, err)
	}
	mem, err := unix.Mmap(-1, 0, pages*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); unix.Munmap(mem) }) // an armed munmap would wait for its event to be read
	addr := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	if err := f.Register(addr, uint64(len(mem)), mode); err != nil {
		t.Fatal(err)
	}
	return f, mem, addr
}

func TestCopyPutsPagesInPlaceOnce(t *testing.T) {
	f, mem, addr := armed(t, 0, 8, RegisterMissing)
	src := bytes.Repeat([]byte("stasis!\n"), 4*page/8)
	if n, err := f.Copy(addr+page, src, 0); n != len(src) || err != nil {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	if !bytes.Equal(mem[page:5*page], src) {
		t.Fatal("content differs")
	}
	if n, err := f.Copy(addr+page, src[:page], 0); n != 0 || !errors.Is(err, unix.EEXIST) {
		t.Fatalf("Copy over a page = %d, %v; want EEXIST", n, err)
	}
	if n, _ := f.Copy(addr, src, 0); n != page {
		t.Fatalf("Copy up to a page that exists = %d bytes, want %d", n, page)
	}
	if n, err := f.ZeroPage(addr+5*page, 3*page, 0); n != 3*page || err != nil {
		t.Fatalf("ZeroPage = %d, %v", n, err)
	}
	if !bytes.Equal(mem[5*page:], make([]byte, 3*page)) {
		t.Fatal("zero pages are not zero")
	}
	if n, err := f.Copy(addr+7*page, src, 0); n != 0 || !errors.Is(err, unix.ENOENT) {
		t.Fatalf("Copy past the mapping = %d, %v; want ENOENT", n, err)
	}
	if f.Gone(addr) {
		t.Fatal("Gone is true in a living process")
	}
}

func TestAFaultIsReportedAndResolved(t *testing.T) {
	f, mem, addr := armed(t, 0, 4, RegisterMissing)
	got := make(chan byte)
	go func() { got <- touch(mem, 2*page+5) }()
	var ev [4]Event
	ready(t, f)
	n, err := f.ReadEvents(ev[:])
	if err != nil || n != 1 || ev[0].Kind != Fault || ev[0].Addr != addr+2*page || ev[0].Flags&FaultWrite != 0 {
		t.Fatalf("ReadEvents = %d %+v, %v", n, ev[0], err)
	}
	if _, err := f.ReadEvents(ev[:]); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("second ReadEvents: %v, want EAGAIN", err)
	}
	if _, err := f.Copy(addr+2*page, bytes.Repeat([]byte{7}, page), CopyDontWake); err != nil {
		t.Fatal(err)
	}
	if err := f.Wake(addr+2*page, page); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b != 7 {
		t.Fatalf("the fault read %d", b)
	}
}

func TestUnregisterLetsTheKernelServeAgain(t *testing.T) {
	f, mem, addr := armed(t, 0, 2, RegisterMissing)
	if err := f.Unregister(addr, 2*page); err != nil {
		t.Fatal(err)
	}
	if mem[0] != 0 || mem[page] != 0 {
		t.Fatal("not zero")
	}
}

// TestPartsAreJoinedAgain: a mapping that was disarmed in part is one again when all of it is.
func TestPartsAreJoinedAgain(t *testing.T) {
	for _, prepared := range []bool{true, false} {
		f, mem, addr := armed(t, 0, 6, RegisterMissing)
		if prepared {
			if err := f.PrepareAnon(addr + 2*page); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Unregister(addr+2*page, 2*page); err != nil {
			t.Fatal(err)
		}
		mem[2*page], mem[3*page] = 1, 1
		for _, at := range []uint64{0, page, 4 * page, 5 * page} {
			if _, err := f.Copy(addr+at, bytes.Repeat([]byte{2}, page), 0); err != nil {
				t.Fatalf("the preparation has put a page there: %v", err)
			}
		}
		if err := f.Unregister(addr, 6*page); err != nil {
			t.Fatal(err)
		}
		one := coveredByOne(t, addr, addr+6*page)
		t.Logf("prepared %t: one mapping %t", prepared, one)
		if prepared && !one {
			t.Error("the mapping stays in parts")
		}
	}
}

// coveredByOne says whether one mapping of this process has a range.
func coveredByOne(t *testing.T, start, end uint64) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from <= start && end <= to {
			return true
		}
	}
	return false
}

func TestAChangeOfTheMappingsIsAnEvent(t *testing.T) {
	f, mem, addr := armed(t, FeatureEventRemove|FeatureEventUnmap, 4, RegisterMissing)
	if f.Changing() {
		t.Fatal("Changing is true while nothing happens")
	}
	done := make(chan error, 1)
	go func() { done <- unix.Madvise(mem[page:2*page], unix.MADV_DONTNEED) }()
	ready(t, f)
	if _, err := f.Copy(addr, make([]byte, page), 0); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("Copy during a change: %v, want EAGAIN", err)
	}
	if !f.Changing() {
		t.Fatal("Changing is false before the event was read")
	}
	var ev [1]Event
	if n, err := f.ReadEvents(ev[:]); n != 1 || err != nil || ev[0].Kind != Remove || ev[0].Addr != addr+page || ev[0].End != addr+2*page {
		t.Fatalf("ReadEvents = %d %+v, %v", n, ev[0], err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if f.Changing() {
		t.Fatal("Changing is true after the change")
	}
}

func TestAsyncWriteProtectionNeedsNoHandler(t *testing.T) {
	f, mem, addr := armed(t, FeatureWPUnpopulated|FeatureWPAsync, 2, RegisterWP)
	mem[0] = 1
	if err := f.WriteProtect(addr, 2*page, WriteProtectOn); err != nil {
		t.Fatal(err)
	}
	mem[0], mem[page] = 2, 2
}

func TestUnknownFeaturesAreRefused(t *testing.T) {
	f, err := New(0)
	if err != nil {
		t.Skipf("requires userfaultfd(2): %v", err)
	}
	defer f.Close()
	if _, err := f.API(1 << 62); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("API: %v, want EINVAL", err)
	}
}

func TestDecode(t *testing.T) {
	message := func(kind byte, args ...uint64) []byte {
		m := make([]byte, messageSize)
		m[0] = kind
		for i, a := range args {
			binary.NativeEndian.PutUint64(m[8+8*i:], a)
		}
		return m
	}
	for _, c := range []struct {
		in   []byte
		want Event
	}{
		{message(0x12, 1, 0x5000), Event{Kind: Fault, Flags: 1, Addr: 0x5000, FD: -1}},
		{message(0x13, 0xffffffff00000007), Event{Kind: Fork, FD: 7}},
		{message(0x14, 0x1000, 0x9000, 0x2000), Event{Kind: Remap, Addr: 0x1000, End: 0x3000, To: 0x9000, FD: -1}},
		{message(0x15, 0x1000, 0x4000), Event{Kind: Remove, Addr: 0x1000, End: 0x4000, FD: -1}},
		{message(0x16, 0x1000, 0x4000), Event{Kind: Unmap, Addr: 0x1000, End: 0x4000, FD: -1}},
	} {
		if got := decode(c.in); got != c.want {
			t.Errorf("decode = %+v, want %+v", got, c.want)
		}
	}
}

// touch reads a byte. A plain `c <- mem[i]` hands the runtime the address, and
// the fault comes later, inside the receiver's channel operation.
//
//go:noinline
func touch(mem []byte, i int) byte { return mem[i] }

// ready waits until f has something to read.
func ready(t *testing.T, f *FD) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 10_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("nothing to read within 10 s: %v", err)
		}
		return
	}
}
