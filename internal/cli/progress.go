package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"stasis"
)

// refresh is how often a progress bar is drawn.
const refresh = 100 * time.Millisecond

// progressView is a progress bar on a terminal, or nothing. Whoever reports progress only leaves a note: a terminal that takes
// nothing (Ctrl-S) must not hold up a dump, least of all one whose process is frozen.
type progressView struct {
	end  chan struct{} // closed by Close
	done sync.WaitGroup

	mu      sync.Mutex
	label   string    // guarded by mu
	began   time.Time // guarded by mu: when the label was new
	first   int64     // guarded by mu: current at that time
	current int64     // guarded by mu
	total   int64     // guarded by mu; 0: unknown
}

// progress begins to show progress, where somebody looks at it. The caller closes the view before it prints anything else.
func (a *app) progress() *progressView {
	v := &progressView{end: make(chan struct{})}
	if a.quiet || a.output == outputJSON || !terminal(a.err) {
		return v
	}
	container := mpb.New(append(drawnOn(a.err), mpb.WithRefreshRate(refresh))...)
	v.done.Go(func() { v.draw(container) })
	return v
}

// drawnOn are the options for a terminal. One that has no size, as behind some serial lines and programs that drive others, has room for 80
// columns: the bar would have no width there.
func drawnOn(terminal io.Writer) []mpb.ContainerOption {
	if file, ok := terminal.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil && (size.Col == 0 || size.Row == 0) {
			return []mpb.ContainerOption{mpb.WithOutput(struct{ io.Writer }{file}), mpb.WithAutoRefresh()}
		}
	}
	return []mpb.ContainerOption{mpb.WithOutput(terminal)}
}

// Close takes the bar away. It may be called again.
func (v *progressView) Close() {
	v.mu.Lock()
	select {
	case <-v.end:
	default:
		close(v.end)
	}
	v.mu.Unlock()
	v.done.Wait()
}

// show notes how far the work is. It never waits for a terminal.
func (v *progressView) show(label string, current, total int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if label != v.label {
		v.label, v.began, v.first = label, time.Now(), current
	}
	v.current, v.total = current, total
}

// update is what the library calls.
func (v *progressView) update(p stasis.Progress) {
	label := labels[p.Step]
	if p.Step == stasis.StepCopy && p.Round > 0 {
		label = fmt.Sprintf("copying changes, round %d", p.Round+1)
	}
	v.show(label, p.Done, p.Total)
}

var labels = map[stasis.Step]string{
	stasis.StepPrepare: "looking at the process",
	stasis.StepArm:     "beginning to track writes",
	stasis.StepCopy:    "copying memory",
	stasis.StepFreeze:  "freezing",
	stasis.StepState:   "copying the last pages",
	stasis.StepWrite:   "writing",
	stasis.StepPublish: "publishing",
	stasis.StepEnd:     "ending the process",

	stasis.StepOpen:    "reading the checkpoint's index",
	stasis.StepCheck:   "checking this machine",
	stasis.StepUnpack:  "unpacking the state",
	stasis.StepRestore: "restoring the state",
	stasis.StepFill:    "filling memory",
	stasis.StepResume:  "resuming",
}

// draw draws until Close.
func (v *progressView) draw(container *mpb.Progress) {
	style := mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]")
	bar := container.New(0, style,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return v.left() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return v.right() })))
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-v.end:
			bar.Abort(true)
			container.Wait()
			return
		case <-tick.C:
			v.mu.Lock()
			current, total := v.current, v.total
			v.mu.Unlock()
			bar.SetTotal(max(total, 1), false)
			bar.SetCurrent(min(current, total))
		}
	}
}

// left is the text before the bar.
func (v *progressView) left() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.label + " "
}

// right is the text behind the bar.
func (v *progressView) right() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == 0 {
		return ""
	}
	text := " " + inBytes(v.current)
	if v.total > 0 {
		text += " of " + inBytes(v.total)
	}
	return text + ", " + rate(v.current-v.first, time.Since(v.began))
}
