// Package pageserver speaks the protocol of CRIU's page server, from the server's side: stock "criu dump --page-server" sends
// the memory of a process tree to it, and it goes into the shards of a checkpoint as it comes ([Receive]); stock "criu lazy-pages
// --page-server" asks for pages of a finished checkpoint ([Serve]). The sender's disk sees none of it.
//
// # Words
//
// A pagemap is the memory of one process, known by its pid inside the tree, or one segment of shared memory, known by a number
// that CRIU made (shmid). A run is a number of pages in a row. A hole is a run whose content is in the parent checkpoint.
//
// # Protocol
//
// The sender speaks, the server answers only where it says so. A message is a head, in the sender's byte order (little-endian on
// every machine that this is for). CRIU 4.2 made the number of pages wider; older versions have the shorter head. Which one it
// is can be told by the first message, see layoutOf.
//
//	until 4.1, 24 bytes          from 4.2, 32 bytes
//	 0  command u16                0  command u16
//	 2  flags u16                  2  flags u16
//	 4  number of pages u32        4  nothing u32
//	 8  address u64                8  number of pages u64
//	16  pagemap u64               16  address u64
//	                              24  pagemap u64
//
// A pagemap is its number<<8 | 1 for a process, number<<8 | 2 for shared memory, where an address is an offset in the segment.
// In the request for pages it is the plain pid.
//
//	1      pages follow (before CRIU 2.0)
//	2      hole (likewise)
//	3      open a pagemap
//	4      open a pagemap; answer: one byte, 1 if the parent has it
//	5      does the parent have the pagemap? Answer: i32, 1 or 0
//	6      run: flags 1 = hole, 2 = may be restored lazily, 4 = pages follow
//	7      request for pages; answer: a message 6 with flag 4 and as many pages as there are in a row, at most as many as wanted
//	0x1023 all is sent; answer: i32, 0 when it is safe
//	0x1024 the same, over a socket that others hold open
//
// CRIU ends the dump, and so the processes, only when the answer to 0x1023 is 0; any other number, or a lost connection, makes
// the dump fail and the processes run on. So it is answered when the checkpoint is on the disk and published, and not before.
// A dump that fails on the sender's side says 0x1023 as well, after some of the memory. Nothing in the protocol tells that from
// success, so it leaves a checkpoint of memory that nothing can be done with: CRIU's own images for it are missing.
//
// What is stricter here than in CRIU: a pagemap is opened before pages of it are sent, and once only; its runs are in order of
// addresses and do not overlap; a hole must be in the parent; pages that stay behind with the sender (a lazy dump) are refused.
//
// A CRIU that is told that there is a parent wants its own images of that dump as well, and memory tracking by the kernel
// (soft-dirty): without either its dump fails. So that parents are of use everywhere, a server can keep its parent to itself; then
// all memory is sent, and what is as in the parent is not stored again.
//
// Anything else that is not in the table ends the connection and leaves no checkpoint.
//
// # Checkpoint
//
// The checkpoint is of the kind pre-dump: memory without a process. The memory of processes is stored by their pids. Shared memory
// is stored as CRIU's images pagemap-shmem-N.img and pages-K.img, complete: what was a hole is copied from the parent's image, and
// the Writer makes references of whole pieces that are equal.
//
// # Concurrency and memory
//
// One connection is served by one goroutine, which has the only right to its state; blocks are compressed and written by others. A
// server holds some blocks of 256 KiB, whatever is sent, and 16 bytes for each range of addresses, beside what the Writer has.
package pageserver
