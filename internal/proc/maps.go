package proc

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Range is a stretch of addresses, in bytes, End exclusive.
type Range struct{ Start, End uint64 }

// Len is the length of the range in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

// Join returns ranges in the order of their addresses; those that touch or overlap
// are one. The list stays as it is.
func Join(list []Range) []Range {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	joined := list[:0]
	for _, r := range list {
		if n := len(joined); n > 0 && r.Start <= joined[n-1].End {
			joined[n-1].End = max(joined[n-1].End, r.End)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// Mapping is one mapping of a process (proc_pid_maps(5)).
type Mapping struct {
	Range
	Perms  string // as in maps: "rw-p"
	Offset uint64
	Dev    string
	Inode  uint64
	Path   string // file, "[heap]", "[stack]", "[anon:NAME]" or empty
	Line   string // all of this as it stands in maps

	// The rest is known only from Smaps.

	Flags       string // the two-letter codes of VmFlags, separated by blanks
	SharedAnon  uint64 // bytes of anonymous pages that another process maps as well
	AnonBytes   uint64 // bytes of anonymous pages
	Resident    uint64 // bytes present
	Swapped     uint64 // bytes in swap
	Dirty       uint64 // private dirty bytes
	HugeBytes   uint64 // bytes in transparent huge pages
	sharedBytes uint64
}

// Private says that writes to the mapping stay with the process.
func (m *Mapping) Private() bool { return len(m.Perms) == 4 && m.Perms[3] == 'p' }

// Anonymous says that no file stands behind the mapping. The kernel's own
// mappings (vdso and the like) are not counted as anonymous.
func (m *Mapping) Anonymous() bool {
	if m.Inode != 0 || m.Dev != "00:00" {
		return false
	}
	return m.Path == "" || m.Path == "[heap]" || strings.HasPrefix(m.Path, "[anon:")
}

// Has says whether a VmFlags code, such as "lo" or "ht", is set.
func (m *Mapping) Has(flag string) bool {
	for f := range strings.FieldsSeq(m.Flags) {
		if f == flag {
			return true
		}
	}
	return false
}

// Kind names the mapping for people: heap, stack, anonymous, file, shared, …
func (m *Mapping) Kind() string {
	switch {
	case m.Path == "[heap]":
		return "heap"
	case strings.HasPrefix(m.Path, "[stack"):
		return "stack"
	case strings.HasPrefix(m.Path, "/anon_hugepage"):
		return "hugetlb"
	case strings.HasPrefix(m.Path, "/SYSV"):
		return "sysv-shm"
	case strings.HasPrefix(m.Path, "/memfd:"):
		return "memfd"
	case strings.HasPrefix(m.Path, "/dev/zero") && !m.Private():
		return "shared-anonymous"
	case m.Anonymous():
		return "anonymous"
	case m.Inode == 0:
		return "kernel"
	case m.Private():
		return "file-private"
	default:
		return "file-shared"
	}
}

// Maps lists the mappings of a process, in the order of their addresses. It is
// quick: the kernel walks no page table for it.
//
// The kernel hands the list out in pieces. Of a process that runs, mappings that
// change between two of them may be missing, but none overlaps another.
func Maps(pid int) ([]Mapping, error) {
	raw, err := readFile(pid, "maps")
	if err != nil {
		return nil, err
	}
	return parseMaps(pid, bytes.NewReader(raw))
}

// Smaps lists the mappings of a process with their flags and how they are
// used. The kernel walks all page tables for it: some 4 ms a GiB.
func Smaps(pid int) ([]Mapping, error) {
	file, err := os.Open(path(pid, "smaps"))
	if err != nil {
		return nil, gone(pid, "smaps", err)
	}
	defer file.Close()
	return parseMaps(pid, file)
}

func parseMaps(pid int, r io.Reader) ([]Mapping, error) {
	var maps []Mapping
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			continue
		}
		if key, value, ok := strings.Cut(line, ":"); ok && len(maps) > 0 && isSmapsKey(key) {
			maps[len(maps)-1].apply(key, value)
			continue
		}
		m, err := parseMapping(line)
		if err != nil {
			return nil, fmt.Errorf("read the mappings of process %d: line %q: %w", pid, line, err)
		}
		for len(maps) > 0 && maps[len(maps)-1].End > m.Start {
			maps = maps[:len(maps)-1] // it has become part of this one, or has been replaced
		}
		maps = append(maps, m)
	}
	return maps, gone(pid, "mappings", lines.Err())
}

// isSmapsKey tells "Rss:" from the first line of a mapping, whose first colon
// stands in the device number behind blanks.
func isSmapsKey(key string) bool {
	return key != "" && key[0] >= 'A' && key[0] <= 'Z' && !strings.Contains(key, " ")
}

func parseMapping(line string) (Mapping, error) {
	var m Mapping
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 5 {
		return m, fmt.Errorf("%d fields where 5 belong", len(fields))
	}
	from, to, _ := strings.Cut(fields[0], "-")
	var err error
	if m.Start, err = strconv.ParseUint(from, 16, 64); err != nil {
		return m, err
	}
	if m.End, err = strconv.ParseUint(to, 16, 64); err != nil {
		return m, err
	}
	if m.Offset, err = strconv.ParseUint(fields[2], 16, 64); err != nil {
		return m, err
	}
	if m.Inode, err = strconv.ParseUint(fields[4], 10, 64); err != nil {
		return m, err
	}
	m.Perms, m.Dev, m.Line = fields[1], fields[3], line
	if len(fields) == 6 {
		m.Path = strings.TrimLeft(fields[5], " ")
	}
	return m, nil
}

func (m *Mapping) apply(key, value string) {
	if key == "VmFlags" {
		m.Flags = strings.TrimSpace(value)
		return
	}
	var into *uint64
	switch key {
	case "Rss":
		into = &m.Resident
	case "Anonymous":
		into = &m.AnonBytes
	case "Swap":
		into = &m.Swapped
	case "Private_Dirty":
		into = &m.Dirty
	case "AnonHugePages":
		into = &m.HugeBytes
	case "Shared_Clean", "Shared_Dirty":
		into = &m.sharedBytes
	default:
		return
	}
	number, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
	if into == &m.sharedBytes {
		number += m.sharedBytes >> 10
	}
	*into = number << 10
	m.SharedAnon = min(m.sharedBytes, m.AnonBytes)
}

// PrivateMemory is the RAM in bytes that a process has to itself.
func PrivateMemory(pid int) (int64, error) {
	text, err := os.ReadFile(path(pid, "smaps_rollup"))
	if err != nil {
		return 0, gone(pid, "smaps_rollup", err)
	}
	var total int64
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if key == "Private_Clean" || key == "Private_Dirty" {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/smaps_rollup reads %q", pid, line)
			}
			total += kib << 10
		}
	}
	return total, nil
}

// ksmShared is how many pages there are on this machine in place of several equal
// ones (Documentation/admin-guide/mm/ksm.rst).
const ksmShared = "/sys/kernel/mm/ksm/pages_shared"

// Merged says whether the kernel has, or may have, merged pages of a process with
// equal ones.
func Merged(pid int) bool {
	anywhere, err := os.ReadFile(ksmShared)
	if err != nil || strings.TrimSpace(string(anywhere)) == "0" {
		return false // without CONFIG_KSM there is no such file
	}
	own, err := os.ReadFile(path(pid, "ksm_merging_pages")) // Linux 5.19
	return err != nil || strings.TrimSpace(string(own)) != "0"
}
