// Package testkit starts real programs, makes them work, and lets them prove
// that all their state is still there. Tests dump and restore them in between.
//
// Words: a kind is a sort of program with what is known about checkpointing it;
// a program is a running one, together with a client that knows what every
// answer has to be; to prove is to ask for everything and compare; a
// checkpointer is whatever dumps and restores: Stasis, or plain CRIU as the
// measure of what is possible.
//
//	for _, kind := range testkit.Kinds() {
//		t.Run(kind.Name, func(t *testing.T) { testkit.RoundTrip(t, kind, checkpointer) })
//	}
//
// Programs run in a session of their own, with /dev/null for their terminal, in
// a folder of their own and, where they listen, at a loopback address of their
// own, so that nothing on the machine can take what they have to get back. The
// end of the test ends the whole tree.
//
// The test process makes itself a subreaper (prctl(2)): trees that were
// restored become its children, and a pid is free again as soon as its process
// is dead. Programs are used by one goroutine at a time.
package testkit

import (
	"stasis/internal/require"
)

// T is a test, or something like it. See [require.T].
type T = require.T

// Program is a running process tree whose state is known.
type Program interface {
	// PID is the root of the tree. A restore brings it back under the same
	// number.
	PID() int
	// Work changes the program's state, or waits until it has changed it
	// itself. From then on Prove expects the new state.
	Work(t T)
	// Prove asks for all state and fails the test for each difference.
	Prove(t T)
	// Snapshot returns a function that makes Prove expect again what it
	// expects now. It is called at a dump, and its result after that checkpoint
	// was restored, if the program has gone on in between.
	Snapshot() (rewind func())
}

// Kind is a sort of program, and what has to be known for a checkpoint of it.
type Kind struct {
	Name  string
	Start func(t T) Program
	Needs Needs

	// Forward: part of the state is in files or elsewhere outside of the
	// checkpoint. Only the checkpoint that ended the program may be restored,
	// not one after which it went on.
	Forward bool
	// Shares: the tree's processes share memory since a fork, and PSS must not
	// grow.
	Shares bool
	// Changing: processes or threads of the tree come and go by themselves, so
	// that the tree before and after a checkpoint can't be compared.
	Changing bool

	// CRIULacks says what plain CRIU 4.2 gets wrong with it, if anything.
	CRIULacks string
	// Refused is part of the message with which a dump must fail: CRIU can't
	// dump this kind at all, and the program has to go on unharmed.
	Refused string
}

// Needs are the options that a dump and a restore of a program need.
type Needs struct {
	TCPEstablished bool // connections, kept
	FileLocks      bool // flock, POSIX and open-file locks
	LinkRemap      bool // files whose name is gone while another is left
}

// Flags gives the needs as CRIU's command line has them, which is also how
// Stasis's has them.
func (n Needs) Flags() []string {
	var flags []string
	add := func(on bool, flag string) {
		if on {
			flags = append(flags, flag)
		}
	}
	add(n.TCPEstablished, "--tcp-established")
	add(n.FileLocks, "--file-locks")
	add(n.LinkRemap, "--link-remap")
	return flags
}

// Checkpointer dumps and restores trees.
type Checkpointer interface {
	// Dump writes a checkpoint of the tree into dir, an empty folder. If kill
	// is set the tree is dead afterwards, else it runs on. When Dump fails, the
	// tree runs on in any case.
	Dump(t T, pid int, dir string, needs Needs, kill bool) error
	// Restore brings the tree back and returns when it runs. It is not the
	// caller's child.
	Restore(t T, dir string, needs Needs) error
}

// Kinds are all kinds of programs.
func Kinds() []Kind {
	return append(subjectKinds(), realKinds()...)
}
