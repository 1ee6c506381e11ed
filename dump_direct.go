package stasis

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/inject"
	"stasis/internal/proc"
	"stasis/internal/track"
)

// Write protection sees what a program writes, and what the kernel writes for it
// at its addresses. It does not see a device that writes into its memory: read(2)
// of a file with O_DIRECT makes the pages writable, and the data comes some time
// later. A round that protects such a page in between, and copies it before the
// data is there, would never hear of it again.
//
// So the rounds of a process that has such a file open are made while all of its
// threads are held: a thread stops outside of the kernel only, when its read is
// complete. Asynchronous reads (io_submit(2), io_uring(7)) stop for nobody, and
// memory that is pinned for them is written past all protection at any time; a
// process that has such is not tracked. Soft-dirty bits do not have this problem:
// the kernel leaves those of pinned pages set.

// roundOf runs a round of the tracker of a process and adds the written pages.
func (d *dump) roundOf(p *process, add func(proc.Range)) error {
	if p.tracker.Kind() != track.KindUserfaultfd {
		return p.tracker.Round(p.ours, func(r proc.Run) { add(r.Range) })
	}
	if why := writtenUnseen(p.task.PID); why != "" {
		return d.untrack(p, why)
	}
	err := d.roundOfTracked(p, add)
	if err != nil || p.tracker == nil {
		return err
	}
	if why := writtenUnseen(p.task.PID); why != "" {
		return d.untrack(p, why)
	}
	return nil
}

// writtenUnseen says why the memory of a process may be written without a trace,
// or "".
func writtenUnseen(pid int) string {
	if pinned, err := proc.Pinned(pid); err == nil && pinned > 0 {
		return fmt.Sprintf("%d KiB of its memory are pinned for something that is no program, such as a device", pinned>>10)
	}
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return "" // it has ended
	}
	defer files.Close()
	list, err := files.List()
	if err == nil && slices.ContainsFunc(list, func(fd proc.Descriptor) bool { return fd.Target == "anon_inode:[io_uring]" }) {
		return "it has an io_uring"
	}
	return ""
}

// roundOfTracked holds the process for the round if it reads files past the page
// cache.
func (d *dump) roundOfTracked(p *process, add func(proc.Range)) error {
	if p.direct = p.direct || readsDirectly(p.task.PID); p.direct {
		return d.roundHeld(p, false, add)
	}
	if err := p.tracker.Round(p.ours, func(r proc.Run) { add(r.Range) }); err != nil {
		return err
	}
	if p.direct = readsDirectly(p.task.PID); p.direct {
		return d.roundHeld(p, true, add) // some of those pages may have been on their way
	}
	return nil
}

// roundHeld is a round while no thread of the process runs. It adds the pages
// when they run again; all of them, if that is asked for.
func (d *dump) roundHeld(p *process, all bool, add func(proc.Range)) error {
	if hasAIO(p.maps) {
		return d.untrack(p, "it can read files past the page cache, asynchronously")
	}
	release, err := d.injector.Hold(p.task.PID)
	if errors.Is(err, inject.ErrUnsupported) {
		if all {
			return d.untrack(p, "it reads files past the page cache, and does not stop")
		}
		d.noteOnce("process %d (%s) reads files past the page cache, and does not stop for a round: more of its memory is copied during the freeze", p.task.PID, p.task.Comm)
		return nil // what was written stays so for the next round
	}
	if err != nil {
		return err
	}
	var pages []proc.Range
	note := func(r proc.Run) { pages = append(pages, r.Range) }
	if all {
		err = p.tracker.Look(rangesOf(p.ours), func(r proc.Run, _ bool) { note(r) })
		note = func(proc.Run) {}
	}
	if err == nil {
		err = p.tracker.Round(p.ours, note)
	}
	if released := release(); err == nil && released != nil {
		return d.untrack(p, "it could not be held for a round: "+released.Error())
	}
	for _, r := range pages {
		add(r)
	}
	return err
}

// untrack gives up the tracker of a process. All of its memory is copied during
// the freeze then.
func (d *dump) untrack(p *process, why string) error {
	d.note("the writes of process %d (%s) cannot be tracked: %s; its memory is copied during the freeze", p.task.PID, p.task.Comm, why)
	err := p.tracker.Close()
	p.tracker, p.looked = nil, nil
	return err
}

// noteOnce is note for what may happen again and again.
func (d *dump) noteOnce(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(d.notes, text) {
		d.notes = append(d.notes, text)
	}
}

// readsDirectly says whether a process has a file open for reads past the page
// cache.
func readsDirectly(pid int) bool {
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return false // it has ended
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return true // better safe
	}
	for _, fd := range list {
		if !fd.HasPath() {
			continue
		}
		info, err := files.Info(fd.FD)
		if err == nil && info.Flags&unix.O_DIRECT != 0 && info.Flags&unix.O_ACCMODE != unix.O_WRONLY {
			return true
		}
	}
	return false
}

// hasAIO says whether there is a ring of asynchronous input and output.
func hasAIO(maps []proc.Mapping) bool {
	for _, m := range maps {
		if strings.HasPrefix(m.Path, "/[aio]") {
			return true
		}
	}
	return false
}

func rangesOf(maps []proc.Mapping) []proc.Range {
	list := make([]proc.Range, len(maps))
	for i, m := range maps {
		list[i] = m.Range
	}
	return list
}
