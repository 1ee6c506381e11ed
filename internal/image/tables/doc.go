// Package tables is what a checkpoint has where: the indexes of all its shards put together, seen to fit each other, and sorted, so that
// a page is found quickly. It reads no blocks. [Tables] is filled once, and may be used from any number of goroutines then.
package tables
