package criu

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layout of struct box in preload/arm.c.
const (
	boxMagic = 0x32444e494c425453
	boxBytes = 65536

	boxTurn   = 8
	boxQuiet  = 12
	boxTID    = 16
	boxOrder  = 24
	boxCall   = 32 // gadget, number and three arguments
	boxResult = 72
	boxFailed = 80
	boxEvents = 88 // how many eventfds, then two numbers for each

	maxEventfds  = 4000
	efdSemaphore = 1 // EFD_SEMAPHORE

	turnCRIU, turnStasis = 0, 1
	orderLetGo           = 0
	orderCall            = 1

	futexWait, futexWake = 0, 1
)

// Arm lets Stasis run system calls in the threads of a restored tree at the
// last moment before CRIU lets them go. CRIU holds them with ptrace until then,
// so that its own process has to do it: preload/arm.c. It also lets a tree end
// processes of its own before CRIU has let go all of them.
type Arm struct {
	library, file *os.File
	shared        []byte
	stopped       atomic.Bool
	served        chan struct{}
}

// Caller runs a system call in a thread that CRIU is about to let go, through
// the "syscall" instruction at an address of its process. The error is the
// call's, or that of tracing the thread.
type Caller func(gadget uint64, number uintptr, args ...uint64) (uint64, error)

// NewArm prepares the library. Visit is called for each thread before it is let
// go, from a goroutine of its own, one call at a time; Close ends that. It may be
// nil.
func NewArm(visit func(tid int, call Caller)) (*Arm, error) {
	library, err := memfile("stasis-preload.so", preloadLibrary)
	if err != nil {
		return nil, err
	}
	header := make([]byte, 8)
	*(*uint64)(unsafe.Pointer(&header[0])) = boxMagic
	file, err := memfile("stasis-arm", header)
	if err != nil {
		library.Close()
		return nil, err
	}
	a := &Arm{library: library, file: file, served: make(chan struct{})}
	if err = file.Truncate(boxBytes); err == nil {
		a.shared, err = unix.Mmap(int(file.Fd()), 0, boxBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		library.Close()
		file.Close()
		return nil, fmt.Errorf("make memory to share with CRIU: %w", err)
	}
	if visit == nil {
		a.shared[boxQuiet] = 1
		close(a.served)
		return a, nil
	}
	go a.serve(visit)
	return a, nil
}

// Eventfds lists the eventfds that CRIU is to make, as [MendFiles] has given
// them. It is called before CRIU is started.
func (a *Arm) Eventfds(list []Eventfd) {
	for i, e := range list {
		at := boxEvents + 8 + 16*i
		*a.number(at) = e.Count
		*a.number(at + 8) = 0
		if e.Semaphore {
			*a.number(at + 8) = efdSemaphore
		}
	}
	*a.number(boxEvents) = uint64(len(list))
}

// Close ends the service. A CRIU that still asks lets its threads go after a
// while.
func (a *Arm) Close() {
	a.stopped.Store(true)
	a.wake()
	<-a.served
	unix.Munmap(a.shared)
	a.library.Close()
	a.file.Close()
}

func (a *Arm) turn() *uint32         { return (*uint32)(unsafe.Pointer(&a.shared[boxTurn])) }
func (a *Arm) number(at int) *uint64 { return (*uint64)(unsafe.Pointer(&a.shared[at])) }
func (a *Arm) environment() []string {
	return []string{preload(), "STASIS_ARM_FD=" + strconv.Itoa(tableFD)}
}
func (a *Arm) wake() { _ = futex(a.turn(), futexWake, 1, nil) }

// serve answers CRIU until Close.
func (a *Arm) serve(visit func(tid int, call Caller)) {
	defer close(a.served)
	runtime.LockOSThread() // it sleeps in the kernel
	defer runtime.UnlockOSThread()
	for a.waitTurn() {
		visit(int(*a.number(boxTID)), a.call)
		a.answer(orderLetGo)
	}
}

// waitTurn waits until CRIU asks; false after Close.
func (a *Arm) waitTurn() bool {
	pause := unix.NsecToTimespec((100 * time.Millisecond).Nanoseconds())
	for atomic.LoadUint32(a.turn()) != turnStasis {
		if a.stopped.Load() {
			return false
		}
		_ = futex(a.turn(), futexWait, turnCRIU, &pause)
	}
	return true
}

func (a *Arm) answer(order uint64) {
	*a.number(boxOrder) = order
	atomic.StoreUint32(a.turn(), turnCRIU)
	a.wake()
}

// call lets CRIU run one system call in the thread that it is about to let go.
func (a *Arm) call(gadget uint64, number uintptr, args ...uint64) (uint64, error) {
	for i, v := range append([]uint64{gadget, uint64(number)}, append(args, 0, 0, 0)[:3]...) {
		*a.number(boxCall + 8*i) = v
	}
	a.answer(orderCall)
	if !a.waitTurn() {
		return 0, fmt.Errorf("run a system call in a restored thread: %w", os.ErrClosed)
	}
	if failed := unix.Errno(*a.number(boxFailed)); failed != 0 {
		return 0, fmt.Errorf("run a system call in a restored thread: %w", failed)
	}
	result := *a.number(boxResult)
	if n := int64(result); n < 0 && n > -4096 {
		return 0, unix.Errno(-n)
	}
	return result, nil
}

func futex(word *uint32, op int, value uint32, timeout *unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(op), uintptr(value), uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
