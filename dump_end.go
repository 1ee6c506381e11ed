package stasis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/netguard"
	"stasis/internal/proc"
)

// goneLimit bounds the wait for killed processes to be gone. A process 1 that
// looks for orphans only now and then takes some seconds.
const goneLimit = 15 * time.Second

// writeKept writes what was kept in RAM during the freeze, and CRIU's images.
func (d *dump) writeKept() error {
	if err := d.checkFlags(); err != nil {
		return err
	}
	if err := d.checkSockets(); err != nil {
		return d.fail(StepWrite, ErrProcess, err)
	}
	nice := 0
	if d.opts.After == AfterRun {
		nice = roundNice + d.opts.Nice // it runs again
	}
	if err := d.buffer.Drain(nice); err != nil {
		return err
	}
	names, err := criu.StateFiles(d.work.Path())
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := d.putFile(name); err != nil {
			return err
		}
	}
	return nil
}

// checkSockets refuses what CRIU dumps and cannot restore: a Unix socket that has
// connected to a program outside of the tree, which has not accepted it yet.
func (d *dump) checkSockets() error {
	files, err := os.ReadFile(filepath.Join(d.work.Path(), criu.FilesImage))
	if err != nil {
		return fmt.Errorf("read CRIU's image: %w", err)
	}
	halves, err := criu.HalfSockets(files)
	if err != nil || len(halves) == 0 {
		return err
	}
	owner := "a process"
	for _, task := range d.tree {
		if slices.Contains(proc.SocketsOf(task.PID), halves[0]) {
			owner = fmt.Sprintf("process %d (%s)", task.PID, task.Comm)
			break
		}
	}
	return fmt.Errorf("a Unix socket of %s waits to be accepted by a program outside of the tree, and cannot be restored: "+
		"dump the tree that holds both ends, or close it before the dump (stasis check PID names both)", owner)
}

func (d *dump) putFile(name string) error {
	file, err := os.Open(filepath.Join(d.work.Path(), name))
	if err != nil {
		return fmt.Errorf("read CRIU's image: %w", err)
	}
	defer file.Close()
	return d.writer.PutFile(name, file)
}

// publish makes the checkpoint durable and lets it exist, by one atomic step at
// the very end. The writer reads back what it wrote as far as the index first.
func (d *dump) publish() error {
	if err := d.parentThere(StepPublish); err != nil {
		return err
	}
	m, err := d.describe()
	if err != nil {
		return err
	}
	if err := d.writer.Finish(d.present, m); err != nil {
		return err
	}
	d.noteUnread()
	d.manifest = m
	return nil
}

// publishFrozen publishes the checkpoint of a tree that is to end with it. When
// CRIU has died, the kernel has let the tree go, and it is ahead of the
// checkpoint.
func (d *dump) publishFrozen(session *criu.Session) error {
	if !session.Alive() {
		return errors.New("CRIU has ended while the checkpoint was written, and the tree goes on: dump it again")
	}
	if err := d.publish(); err != nil {
		return err
	}
	return d.parentStillThere()
}

// explained adds what stands against a dump of the tree now, such as a debugger
// that came after the dump began: CRIU only says that something did not work.
func (d *dump) explained(err error) error {
	if err == nil || d.manifest != nil {
		return err
	}
	tree, treeErr := proc.Tree(d.opts.PID)
	if treeErr != nil {
		return err
	}
	if reason := dumpable(tree); reason != nil {
		return fmt.Errorf("%w: %w", reason, err)
	}
	return err
}

// rescue undoes what a CRIU that was killed has left on the tree.
func (d *dump) rescue() error {
	var pids []int
	for _, task := range d.tree {
		pids = append(pids, task.PID)
	}
	return d.remains().Undo(pids)
}

// remains says what CRIU would leave if it were killed.
func (d *dump) remains() criu.Remains {
	r := criu.Remains{WorkDir: d.work.Path(), Iptables: d.opts.CRIU.LocksWithIptables()}
	if d.blind != nil {
		r.Table = d.blind.LockTable()
	}
	return r
}

// guardNetwork starts a guard where CRIU may lock connections, which a killed
// CRIU would leave locked if Stasis were killed, too.
func (d *dump) guardNetwork(session *criu.Session) error {
	if d.opts.CRIU.NetworkLock == "skip" || !d.opts.CRIU.TCPEstablished && !ownNetwork(d.opts.PID) {
		return nil
	}
	guard, err := netguard.Start(netguard.Watch{CRIU: session.PID(), Root: d.opts.PID, Remains: d.remains()})
	d.netguard = guard
	return err
}

func ownNetwork(pid int) bool {
	ours, err1 := proc.Namespaces(unix.Getpid())
	theirs, err2 := proc.Namespaces(pid)
	return err1 == nil && err2 == nil && ours["net"] != theirs["net"]
}

// endNetguard ends the guard, when there is nothing left to undo, or when the
// lock is to stay.
func (d *dump) endNetguard() {
	if d.netguard != nil {
		d.netguard.Disarm()
		d.netguard = nil
	}
}

// notePause takes CRIU's own measure of the freeze. A lazy dump has none: CRIU
// starts its statistics anew when it serves pages.
func (d *dump) notePause() {
	if d.engine == EngineLazyPages {
		return
	}
	if took := criu.FrozenTime(d.work.Path()); took > 0 {
		d.thawed = d.frozen.Add(took)
	}
}

// describe fills the manifest, except for what the writer knows.
func (d *dump) describe() (*Manifest, error) {
	host, err := thisHost(d.criu)
	if err != nil {
		return nil, err
	}
	kind, depth := image.KindFull, 0
	if d.preDump {
		kind = image.KindPreDump
	}
	if d.parent != nil {
		depth = d.parent.Manifest().Depth + 1
	}
	created := d.frozen.UTC().Truncate(time.Millisecond)
	name := d.opts.Name
	if name == "" {
		name = d.tree[0].Comm + "-" + created.Format("20060102T150405")
	}
	return &Manifest{
		Stasis: Version, Name: name, Kind: kind, Created: created, Depth: depth,
		Engine: string(d.engine), Host: host, RootPID: d.tree[0].NSPID,
		Processes: d.summary, Options: restoreOptions(&d.opts),
		Figures: image.Figures{
			PauseUS: d.pausedFor().Microseconds(),
			DumpUS:  time.Since(d.begun).Microseconds(),
			Rounds:  d.allRounds(),
		},
	}, nil
}

// endTree ends or stops the frozen tree. Its processes are held by CRIU and get
// the signal before anything else, so none of them runs another instruction;
// CRIU is killed before it could undo what a later restore needs.
func (d *dump) endTree(session *criu.Session) error {
	if !session.Alive() {
		return errors.New("the checkpoint is complete, but CRIU has ended, so that the tree went on after it and was not ended: end it, or remove the checkpoint and dump again")
	}
	signal := unix.SIGKILL
	if d.opts.After == AfterStop {
		signal = unix.SIGSTOP
		d.endNetguard() // a tree that is stopped stays locked
	}
	for _, task := range d.tree {
		if err := unix.Kill(task.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("the checkpoint is complete, but process %d could not be ended: %w", task.PID, err)
		}
	}
	if d.opts.After == AfterStop && d.engine == EngineLazyPages {
		return nil // CRIU's code is still in the processes; it takes it out before they stop
	}
	session.Abandon()
	if d.opts.After == AfterKill {
		d.waitGone()
	}
	return nil
}

// waitGone waits until the killed processes have left, or are zombies that wait
// for a parent outside of the tree.
func (d *dump) waitGone() {
	for deadline := time.Now().Add(goneLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if !d.anyLeft() {
			return
		}
	}
}

func (d *dump) anyLeft() bool {
	for _, task := range d.tree {
		now, err := proc.ReadTask(task.PID)
		if err == nil && now.StartTime == task.StartTime && !now.Zombie() {
			return true
		}
	}
	return false
}

// allRounds are the copies of the memory; a dump has one more, that of the
// freeze.
func (d *dump) allRounds() []image.Round {
	if d.preDump {
		return d.rounds
	}
	return append(d.rounds, d.dirty)
}
