package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/codec"
	"stasis/internal/proc"
)

// What the machine can do at best, without Stasis: the yardsticks of the
// measurements that no CRIU is beside.

// blockSize is the size of Stasis's blocks.
const blockSize = 256 << 10

// codecSpeed compresses memory of a process with all cores, from memory to
// memory. The memory is read before the clock starts.
func (j *job) codecSpeed(o *outcome) error {
	blocks, err := readLargest(j.PID, j.Bytes)
	if err != nil {
		return err
	}
	name := j.Compression
	if name == "" {
		name = stasis.DefaultCompression
	}
	compressor, err := codec.New(name, 0)
	if err != nil {
		return err
	}
	failed := make([]error, runtime.NumCPU())
	took := onAllCores(func(core, cores int) {
		space := make([]byte, 0, 2*blockSize)
		for i := core; i < len(blocks); i += cores {
			if _, _, err := compressor.Compress(space, blocks[i]); err != nil {
				failed[core] = err
			}
		}
	})
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	o.Rate = float64(len(blocks)*blockSize) / took.Seconds()
	return nil
}

// readLargest reads up to limit bytes, evenly spread, of the largest private
// mapping of a process, in blocks.
func readLargest(pid int, limit int64) ([][]byte, error) {
	maps, err := proc.Maps(pid)
	if err != nil {
		return nil, err
	}
	var largest proc.Mapping
	for _, m := range maps {
		if m.Private() && m.Len() > largest.Len() {
			largest = m
		}
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	all := int64(largest.Len() / blockSize)
	count := min(all, limit/blockSize)
	if count == 0 {
		return nil, fmt.Errorf("process %d has no mapping of %d bytes", pid, blockSize)
	}
	var blocks [][]byte
	for i := range count {
		block := make([]byte, blockSize)
		at := int64(largest.Start) + i*all/count*blockSize
		if _, err := mem.ReadAt(block, at); err != nil {
			return nil, fmt.Errorf("read memory of process %d: %w", pid, err)
		}
		blocks = append(blocks, block)
	}
	return blocks, nil
}

// populate writes to fresh memory in pages of 4 KiB with all cores: the least
// that a restore has to do.
func (j *job) populate(o *outcome) error {
	size := int(j.Bytes) &^ (blockSize - 1)
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", size, err)
	}
	defer unix.Munmap(memory)
	if err := unix.Madvise(memory, unix.MADV_NOHUGEPAGE); err != nil {
		return fmt.Errorf("refuse huge pages: %w", err)
	}
	// Cores take block after block, so that a slow one does not hold up the rest.
	took := onAllCores(func(core, cores int) {
		source := make([]byte, blockSize)
		for i := range source {
			source[i] = byte(i)
		}
		for at := core * blockSize; at < size; at += cores * blockSize {
			copy(memory[at:at+blockSize], source)
		}
	})
	o.Rate = float64(size) / took.Seconds()
	return nil
}

// onAllCores runs a function on every core and returns how long all took.
func onAllCores(part func(core, cores int)) time.Duration {
	var all sync.WaitGroup
	cores := runtime.NumCPU()
	begun := time.Now()
	for core := range cores {
		all.Go(func() { part(core, cores) })
	}
	all.Wait()
	return time.Since(begun)
}
