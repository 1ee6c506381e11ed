package stasis

import (
	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/settings"
)

// CRIU does not keep all that a process is (internal/settings says what it
// leaves out). Stasis reads the rest from the frozen tree, beside CRIU's work,
// and notes it in the manifest.

// lookAtSettings begins to read the settings of the frozen tree.
func (d *dump) lookAtSettings() {
	tree := d.tree
	d.settings = inBackground(func() (map[int]*image.Settings, error) {
		looker, found := settings.NewLooker(), make(map[int]*image.Settings, len(tree))
		for _, task := range tree {
			found[task.NSPID] = looker.Look(task)
		}
		return found, nil
	})
}

// noteSettings adds the settings to the description of the tree, while it is
// frozen still. What was forked since the description was made gets one, too.
func (d *dump) noteSettings() {
	found, _ := d.settings()
	described := make(map[int]bool, len(d.summary))
	for i := range d.summary {
		p := &d.summary[i]
		p.Settings = found[p.PID]
		described[p.PID] = true
	}
	s := summary{inside: make(map[int]int, len(d.tree))}
	for _, task := range d.tree {
		s.inside[task.PID] = task.NSPID
		if described[task.NSPID] {
			continue
		}
		p := s.describe(task)
		if task.NSPID != task.PID {
			p.Threads = proc.NumbersInside(task.Threads)
		}
		p.Settings = found[task.NSPID]
		d.summary = append(d.summary, p)
	}
}
