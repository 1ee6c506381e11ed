package chain

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"stasis/internal/image"
)

// PruneOptions say what Prune does.
type PruneOptions struct {
	Options
	Policy Policy
	// GroupBy puts checkpoints into groups, to each of which the policy applies by itself. nil: by [Program].
	GroupBy func(*image.Manifest) string
	Zone    *time.Location // of hours and days; nil: the local one
}

// Program is what the root process of a checkpoint is called.
func Program(m *image.Manifest) string {
	for _, p := range m.Processes {
		if p.PID == m.RootPID {
			return p.Comm
		}
	}
	return ""
}

// Decision says what Prune does with a checkpoint, and why.
type Decision struct {
	Item
	Group   string    `json:"group"`
	Created time.Time `json:"created"`
	Keep    bool      `json:"keep"`
	Reasons []string  `json:"reasons"`
}

// ErrNoPolicy says that Prune was not told what to keep.
var ErrNoPolicy = errors.New("nothing says what to keep")

// Prune removes the checkpoints in the folders of root that the policy does not keep; what those that it keeps need stays, as with
// Remove. Besides, deduplicated ones go, and pre-dumps that are older than the newest dump of their group. What is dumped on or restored
// from meanwhile stays, and the report says so. Checkpoints that can't be read are left alone.
func Prune(root string, o PruneOptions) ([]Decision, *Report, error) {
	if o.Policy.Empty() && o.Policy.MaxBytes == 0 {
		return nil, nil, ErrNoPolicy
	}
	root = realPath(absolute(root))
	f, err := scan(nil, append([]string{root}, o.Roots...))
	if err != nil {
		return nil, nil, err
	}
	p := &pruning{o: &o, forest: f}
	p.choose(root)
	p.decide()
	if o.Policy.MaxBytes > 0 {
		if err := p.shrink(); err != nil {
			return nil, nil, err
		}
	}
	r, err := p.remove(root)
	return p.decisions, r, err
}

// pruning is one Prune under way.
type pruning struct {
	o         *PruneOptions
	forest    *forest
	entries   []*entry
	decisions []Decision // of entries
}

// choose picks the checkpoints that it is about: the newest first.
func (p *pruning) choose(root string) {
	groupBy, zone := p.o.GroupBy, p.o.Zone
	if groupBy == nil {
		groupBy = Program
	}
	if zone == nil {
		zone = time.Local
	}
	for _, e := range p.forest.entries {
		if filepath.Dir(e.dir) == root && e.err == nil && !e.removed && staleFor(e.dir) == "" && len(p.forest.lacks(e)) == 0 {
			p.entries = append(p.entries, e)
		}
	}
	slices.SortStableFunc(p.entries, func(a, b *entry) int { return cmp.Compare(b.m.Created.UnixNano(), a.m.Created.UnixNano()) })
	for _, e := range p.entries {
		p.decisions = append(p.decisions, Decision{Item: e.item(), Group: groupBy(e.m), Created: e.m.Created.In(zone)})
	}
}

// decide applies the policy to each group.
func (p *pruning) decide() {
	groups := map[string][]int{}
	newest := map[string]time.Time{}
	for i, e := range p.entries {
		d := &p.decisions[i]
		switch {
		case e.mark != nil:
			d.Reasons = []string{"deduplicated"}
		case e.m.Kind == image.KindPreDump:
			if at, ok := newest[d.Group]; ok && !d.Created.After(at) {
				d.Reasons = []string{"pre-dump of an older dump"}
			} else {
				d.Keep, d.Reasons = true, []string{"pre-dump of a dump to come"}
			}
		default:
			if _, ok := newest[d.Group]; !ok {
				newest[d.Group] = d.Created
			}
			groups[d.Group] = append(groups[d.Group], i)
		}
	}
	for _, list := range groups {
		times := make([]time.Time, len(list))
		for n, i := range list {
			times[n] = p.decisions[i].Created
		}
		reasons := p.o.Policy.Keep(times)
		for n, i := range list {
			d := &p.decisions[i]
			d.Keep, d.Reasons = len(reasons[n]) > 0, reasons[n]
			if p.o.Policy.Empty() {
				d.Keep, d.Reasons = true, []string{"within the size"}
			}
		}
	}
}

// shrink lets the oldest go until what is left fits. The more go, the less is left, so the number is searched for in halves.
func (p *pruning) shrink() error {
	first := map[string]bool{}
	var may []int // the newest first
	for i, d := range p.decisions {
		if !d.Keep || d.Kind == image.KindPreDump {
			continue
		}
		if first[d.Group] {
			may = append(may, i)
		}
		first[d.Group] = true
	}
	slices.Reverse(may)
	var failed error
	n := sort.Search(len(may), func(n int) bool {
		size, err := p.sizeWithout(may[:n])
		failed = errors.Join(failed, err)
		return size <= p.o.Policy.MaxBytes
	})
	for _, i := range may[:n] {
		p.decisions[i].Keep, p.decisions[i].Reasons = false, []string{"size"}
	}
	return failed
}

// sizeWithout is what all checkpoints will take when those that are not kept go, and some more.
func (p *pruning) sizeWithout(gone []int) (total int64, err error) {
	out, ids := map[*entry]bool{}, map[string]bool{}
	for i, e := range p.entries {
		if !p.decisions[i].Keep || slices.Contains(gone, i) {
			out[e], ids[e.id] = true, true
		}
	}
	for _, e := range p.forest.entries {
		if e.isData() {
			out[e], ids[e.id] = true, true
		}
	}
	wanted, err := p.forest.needsOf(ids, out, &p.o.Options)
	if err != nil {
		return 0, err
	}
	for _, e := range p.entries {
		if out[e] {
			total += wanted.bytes(e.id)
		} else {
			total += folderSpace(e.dir)
		}
	}
	return total, nil
}

// remove removes what is not kept and not in use.
func (p *pruning) remove(root string) (*Report, error) {
	var dirs []string
	for i, e := range p.entries {
		if !p.decisions[i].Keep {
			dirs = append(dirs, e.dir)
		}
	}
	if p.o.DryRun {
		return p.forest.remove(dirs, nil, &p.o.Options)
	}
	l := &Lock{}
	defer l.Unlock() //nolint:errcheck // closing a folder loses nothing
	for _, dir := range dirs {
		if err := l.tryExclude(dir); err != nil {
			return nil, err
		}
	}
	if err := p.forest.lockLeftovers(dirs, l); err != nil {
		return nil, err
	}
	f, err := scan(nil, append([]string{root}, p.o.Roots...))
	if err != nil {
		return nil, err
	}
	var busy []Kept
	dirs = slices.DeleteFunc(dirs, func(dir string) bool {
		e := f.dirs[dir]
		if e != nil && !l.has(dir) {
			busy = append(busy, Kept{Item: e.item(), Why: "it is in use"})
		}
		return e == nil || !l.has(dir)
	})
	r, err := f.remove(dirs, l, &p.o.Options)
	if r != nil {
		r.Later = append(r.Later, busy...)
	}
	return r, err
}
