package service

import (
	"sync"

	v1 "stasis/api/stasis/v1"
	"stasis/internal/jobs"
)

// parts keeps what hardly ever changes of the messages that describe jobs, and is most of the work of a list: the spec and the newest
// checkpoint.
type parts struct {
	mu   sync.Mutex
	kept map[partsKey]keptParts // guarded by mu
}

// partsKey names a job, which keeps its id for good.
type partsKey struct {
	id    string
	brief bool
}

// keptParts are messages that nobody changes.
type keptParts struct {
	revision uint64 // of the spec
	spec     *v1.JobSpec
	newest   newest
	last     *v1.Checkpoint
}

// newest names a checkpoint as it is now.
type newest struct {
	seq   uint64
	id    string
	bytes int64
}

func newestOf(i *jobs.Info) newest { return newest{i.Last.Seq, i.Last.ID, i.Last.Bytes} }

// describe gives the messages of jobs; brief ones have what a table shows. all is how many jobs there are.
func (p *parts) describe(list []*jobs.Info, brief bool, all int) []*v1.Job {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept == nil || len(p.kept) > 4*all+100 { // mostly of jobs that are gone
		p.kept = make(map[partsKey]keptParts)
	}
	messages := make([]*v1.Job, len(list))
	for k, info := range list {
		key := partsKey{info.ID, brief}
		kept := p.kept[key]
		before := kept
		if kept.spec == nil || kept.revision != info.Revision {
			kept.revision, kept.spec = info.Revision, specMessage(&info.Spec)
			if brief {
				kept.spec = &v1.JobSpec{Name: kept.spec.Name, Command: kept.spec.Command, Labels: kept.spec.Labels}
			}
		}
		switch {
		case info.Last == nil:
			kept.newest, kept.last = newest{}, nil
		case kept.newest != newestOf(info):
			kept.newest, kept.last = newestOf(info), lastMessage(info)
			if brief {
				kept.last = &v1.Checkpoint{Name: kept.last.Name, Created: kept.last.Created, Figures: &v1.Figures{Pause: kept.last.Figures.Pause}}
			}
		}
		if kept != before {
			p.kept[key] = kept
		}
		messages[k] = jobMessageWith(info, kept.spec, kept.last)
	}
	return messages
}
