// Package convert turns checkpoints into what stock CRIU restores ([Export]), and what CRIU and container engines write into
// checkpoints ([Import]).
//
// # Words
//
// A folder of CRIU holds images: one file for each kind of state, in which pagemap-N.img says which pages process N (or
// pagemap-shmem-N.img, which segment of shared memory) has, and pages-M.img has their content, in the order of the page map. A
// folder can have a link called parent to an earlier one; a run of pages can be said to be there instead (in parent). A page in
// no run is as the mapping has it without having been touched: zeros, where it is private and anonymous.
//
// A checkpoint of Stasis holds the same images as files, but the pages of private anonymous memory in blocks of its own. So to
// export is to put those pages between the ones that CRIU wrote, in the order of their addresses; to import is to take them out
// again.
//
// # What is trusted
//
// The exported checkpoint is checked as for a restore. The imported images are not trusted: their lengths and numbers are
// bounded before use, and what does not fit is an error. What CRIU itself makes of the images that are passed on as they are is
// CRIU's business.
//
// Both work on files alone, need no privilege, and may be called from any number of goroutines. What fails leaves nothing
// behind.
package convert
