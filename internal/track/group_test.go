package track

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
)

// Of the mapping that a mover has, in pages. There is free space around it, where
// nobody else maps anything.
const (
	moverPlace = 0x200000000000
	moverSpace = 64
	moverFirst = 16
	moverPages = 8
)

// mover is a subject with one mapping, which it changes as it is told. It says
// "done", or what the kernel said.
func mover(say func(string, ...any), hear func() (string, bool)) {
	start, length := uintptr(moverPlace+moverFirst*proc.PageSize), uintptr(moverPages*proc.PageSize)
	mapAt(start, length, unix.MAP_FIXED)
	elsewhere := uintptr(moverPlace + moverSpace*proc.PageSize)
	say("%d", start)
	for order, ok := hear(); ok; order, ok = hear() {
		var errno unix.Errno
		switch order {
		case "grow": // in place, into the free space behind
			if _, _, errno = unix.Syscall6(unix.SYS_MREMAP, start, length, 2*length, 0, 0, 0); errno == 0 {
				length *= 2
			}
		case "replace": // by one that begins earlier, and ends in its middle
			unix.Syscall(unix.SYS_MUNMAP, start, length, 0)
			start -= length / 2
			mapAt(start, length, unix.MAP_FIXED)
		case "lock":
			_, _, errno = unix.Syscall(unix.SYS_MLOCK, start+2*proc.PageSize, proc.PageSize, 0)
		case "lock first", "lock last":
			at := start
			if order == "lock last" {
				at += length - proc.PageSize
			}
			_, _, errno = unix.Syscall(unix.SYS_MLOCK, at, proc.PageSize, 0)
		case "unlock":
			_, _, errno = unix.Syscall(unix.SYS_MUNLOCK, start, length, 0)
		case "move":
			_, _, errno = unix.Syscall6(unix.SYS_MREMAP, start, length, length, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, elsewhere, 0)
			start = elsewhere
		}
		if errno != 0 {
			say("%s: %v", order, errno)
			continue
		}
		say("done")
	}
}

// TestTheProgramDoesNotNoticeItsTracking: what it does with its mappings while
// they are being registered, and afterwards, works as it does without.
func TestTheProgramDoesNotNoticeItsTracking(t *testing.T) {
	for _, test := range []struct {
		name                    string
		before, between, behind []string // the list of the mappings is read; they are looked at; they are registered
	}{
		{"nothing", nil, nil, []string{"move"}},
		{"grows", nil, []string{"grow"}, []string{"move"}},
		{"is replaced", nil, []string{"replace"}, []string{"move"}},
		{"has a locked part", []string{"lock"}, nil, []string{"unlock", "move"}},
		{"has a locked beginning", []string{"lock first"}, nil, []string{"unlock", "move"}},
		{"has a locked end", []string{"lock last"}, nil, []string{"unlock", "move"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			available(t, KindUserfaultfd)
			alone := subject.Start(t, "mover")
			alone.Hear()
			s := subject.Start(t, "mover")
			var start uint64
			s.Scan(s.Hear(), &start)
			tell := func(orders []string) {
				t.Helper()
				for _, order := range orders {
					if answer, should := s.Ask(order), alone.Ask(order); answer != should {
						t.Errorf("the program says %q, and without a tracker %q", answer, should)
					}
				}
			}
			tell(test.before)
			w, err := NewWriteProtect(s.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if _, err := w.layout.At(start); err != nil {
				t.Skipf("%v: there are no groups without it", err)
			}
			was := movable(t, s.PID, start)
			was = slices.DeleteFunc(was, func(m proc.Mapping) bool { return m.Has("lo") }) // not for a tracker
			calls := 0
			w.about = func(registered bool) {
				calls++
				if registered {
					tell(test.behind)
				} else {
					tell(test.between)
				}
			}
			if err := w.Round(was, func(proc.Run) {}); err != nil {
				t.Fatal(err)
			}
			if calls != 2 {
				t.Errorf("the program could act %d times, should be twice: %v", calls, was)
			}
		})
	}
}

// movable lists the mappings of a mover's memory.
func movable(t *testing.T, pid int, start uint64) (list []proc.Mapping) {
	t.Helper()
	all, err := proc.Smaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Start >= start && m.End <= start+moverPages*proc.PageSize {
			list = append(list, m)
		}
	}
	return list
}
