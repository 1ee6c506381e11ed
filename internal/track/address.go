package track

import "unsafe"

// addressOf is the address of memory that the garbage collector does not move.
func addressOf(memory []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&memory[0]))) }
