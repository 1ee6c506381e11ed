package writer

import (
	"runtime/debug"
	"sync"
)

// frugalPercent is how much the heap may grow beyond what is in use while the indexes of a checkpoint are made. The tables are large, and most of
// them are of use for a moment only; as they have no pointers, a collection costs next to nothing.
const frugalPercent = 25

var frugality struct {
	sync.Mutex
	users  int // guarded by Mutex
	before int // guarded by Mutex: what it is between
}

// frugal lets less garbage pile up until the function that it returns is called. A smaller value that the program has set stays.
func frugal() (end func()) {
	f := &frugality
	f.Lock()
	defer f.Unlock()
	if f.users++; f.users == 1 {
		if f.before = debug.SetGCPercent(frugalPercent); f.before >= 0 && f.before < frugalPercent {
			debug.SetGCPercent(f.before)
		}
	}
	return func() {
		f.Lock()
		defer f.Unlock()
		if f.users--; f.users == 0 {
			debug.SetGCPercent(f.before)
		}
	}
}
