// Package families reads all memory of a checkpoint, or much of it, with each block read once, however long its chain is.
package families
