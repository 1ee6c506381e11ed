package memmap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// Kind is what memory is used for.
type Kind uint8

// The kinds of memory.
const (
	Unknown   Kind = iota // a pre-dump has pages and no mappings
	Heap                  // what brk(2) gives
	Stack                 // of the process; those of its threads are anonymous
	Anonymous             // private, with no file behind it
	File                  // private, of a file
	Shared                // with other processes, or with a file
	Huge                  // hugetlb
	Kernel                // vdso, vvar, vsyscall
	kinds
)

// Parts are the bytes of some memory that are in a checkpoint, by where they are.
type Parts struct {
	Changed       int64 // stored by this checkpoint
	ChangedPartly int64 // stored by this checkpoint as differences
	Unchanged     int64 // stored by an ancestor
	Zero          int64 // zeros, which are stored nowhere
	StoredAgain   int64 // stored by this checkpoint with whole stretches of CRIU's images: whether it has changed is not known
}

// Sum is all that the checkpoint has.
func (p Parts) Sum() int64 { return p.Changed + p.ChangedPartly + p.Unchanged + p.Zero + p.StoredAgain }

func (p *Parts) add(q Parts) {
	p.Changed += q.Changed
	p.ChangedPartly += q.ChangedPartly
	p.Unchanged += q.Unchanged
	p.Zero += q.Zero
	p.StoredAgain += q.StoredAgain
}

// Process is a process with memory in a checkpoint.
type Process struct {
	PID     int
	Command string
	Parts   Parts
}

// Mapping is a mapping of a process. In a pre-dump it is a stretch of pages.
type Mapping struct {
	PID        int
	Start, End uint64
	Kind       Kind
	Perms      string // such as rw-p; "" where it is not known
	File       string // behind it, if any
	Parts      Parts

	area *area
}

// Total is all memory of one kind.
type Total struct {
	Kind     Kind
	Mappings int
	Mapped   int64 // bytes of address space
	Parts    Parts
}

// Cell is a piece of a process's memory.
type Cell struct {
	PID        int
	Start, End uint64 // not everything in between is in the checkpoint
	Kind       Kind
	Parts      Parts
}

// Map is the memory in a checkpoint.
type Map struct {
	Processes []Process // by pid
	Totals    []Total   // the largest first
	Mappings  []Mapping // by process and address
	LeftOut   int       // mappings that are not in the list
	Cells     []Cell    // by process and address
	CellBytes int64     // of memory in a full cell
	Notes     []string  // why something is not known
}

// MaxMappings is how many mappings a Map lists at most.
const MaxMappings = 512

// maxImage bounds the images of CRIU's that are read, in bytes.
const maxImage = 32 << 20

// Of looks at a checkpoint, and makes at most so many cells of its memory. What cannot be found out of a checkpoint that gave memory up,
// or is damaged, is left out, with a note.
func Of(c *reader.Checkpoint, cells int) *Map {
	m := new(Map)
	r := &looker{checkpoint: c, sizes: c.Files(), files: make(map[uint32]string), segments: make(map[uint64]bool)}
	r.readFiles()
	commands := make(map[int]string)
	pids := c.PIDs()
	for _, p := range c.Manifest().Processes {
		commands[p.PID] = p.Comm
		pids = append(pids, p.PID)
	}
	slices.Sort(pids)
	var pieces []piece
	for _, pid := range slices.Compact(pids) {
		mappings, found := r.process(pid)
		p := Process{PID: pid, Command: commands[pid]}
		for _, f := range found {
			p.Parts.add(f.parts())
		}
		if len(mappings) == 0 && p.Parts.Sum() == 0 {
			continue // a zombie
		}
		m.Processes = append(m.Processes, p)
		m.Mappings = append(m.Mappings, mappings...)
		pieces = append(pieces, found...)
	}
	m.total()
	m.Cells, m.CellBytes = cut(pieces, cells)
	m.shorten()
	m.Notes = r.notes
	return m
}

// total sums the mappings up by kind.
func (m *Map) total() {
	var sums [kinds]Total
	for i := range m.Mappings {
		g := &m.Mappings[i]
		s := &sums[g.Kind]
		s.Kind = g.Kind
		s.Mappings++
		s.Mapped += int64(g.End - g.Start) //nolint:gosec // address spaces are smaller
		s.Parts.add(g.Parts)
	}
	for _, s := range sums {
		if s.Mappings > 0 {
			m.Totals = append(m.Totals, s)
		}
	}
	slices.SortStableFunc(m.Totals, func(a, b Total) int {
		return cmp.Or(cmp.Compare(b.Parts.Sum(), a.Parts.Sum()), cmp.Compare(b.Mapped, a.Mapped))
	})
}

// shorten leaves the mappings with the least memory out.
func (m *Map) shorten() {
	if len(m.Mappings) <= MaxMappings {
		return
	}
	m.LeftOut = len(m.Mappings) - MaxMappings
	slices.SortStableFunc(m.Mappings, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(b.Parts.Sum(), a.Parts.Sum()), cmp.Compare(b.End-b.Start, a.End-a.Start))
	})
	m.Mappings = slices.Clip(m.Mappings[:MaxMappings])
	slices.SortFunc(m.Mappings, func(a, b Mapping) int { return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start)) })
}

// reader reads what a checkpoint says of its memory.
type looker struct {
	checkpoint *reader.Checkpoint
	sizes      []image.FileInfo
	files      map[uint32]string // path of each file by CRIU's number
	segments   map[uint64]bool   // of shared memory, that were counted already
	notes      []string
}

// errTooLarge: no image of that kind has such a size.
var errTooLarge = errors.New("it is too large to be one")

// image reads one of CRIU's images; nil where there is none. What cannot be read is noted.
func (r *looker) image(name string) []byte {
	i := slices.IndexFunc(r.sizes, func(f image.FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	err := errTooLarge
	text := bytes.NewBuffer([]byte{}) // nil is for what is not there
	if r.sizes[i].Size <= maxImage {
		err = r.checkpoint.WriteFile(name, text)
	}
	if err != nil {
		r.note(name, err)
		return nil
	}
	return text.Bytes()
}

// note tells of the first thing that is not known; the others have mostly the same reason.
func (r *looker) note(name string, err error) {
	if len(r.notes) == 0 {
		r.notes = append(r.notes, fmt.Sprintf("not everything is known of this memory, since CRIU's image %s cannot be read: %v", name, err))
	}
}

// process finds the mappings of a process and what of its memory is in the checkpoint.
func (r *looker) process(pid int) ([]Mapping, []piece) {
	mappings := r.mappings(pid)
	pieces := append(r.criuPages(pid), r.ownPages(pid)...) // where both have a page, CRIU's is the one that is restored
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	pieces = apart(pieces)
	for i := range mappings {
		pieces = append(pieces, r.sharedPages(&mappings[i])...)
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	return assign(pid, mappings, apart(pieces))
}
