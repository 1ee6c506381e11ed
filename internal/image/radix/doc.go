// Package radix sorts positions by keys of 64 bits.
package radix
