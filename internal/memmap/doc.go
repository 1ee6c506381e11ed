// Package memmap shows what memory is in a checkpoint: of which kind it is, and what of it the checkpoint stores itself because it
// has changed since the parent.
//
// Words: a mapping is a stretch of a process's address space, as CRIU's image mm-PID.img has it; its parts are the bytes of it that are
// in the checkpoint, by where these are stored. Pages are in two places: those that Stasis keeps are in the checkpoint's index, the
// others (stacks, changed pages of files, shared memory) in CRIU's images of pages, whose pieces the index has as well. A cell is a
// piece of a process's memory of a fixed number of bytes, for pictures.
//
// [Of] reads the manifest, the index, and small images of CRIU's: mappings, page maps and the names of files. It never reads memory.
// Nothing here keeps state: everything may be called from several goroutines at once.
package memmap
