// Package delta finds what differs between two pages, and is the payload of blocks of differences: a [Builder] collects one, [Pages] is
// one taken apart. A value of them is for one goroutine at a time; Pages may be used by many once it is parsed.
package delta
