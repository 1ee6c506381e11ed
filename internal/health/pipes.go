package health

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// pipeEnds are the ends of a pipe that the tree has.
type pipeEnds struct {
	where         string // the first that was found
	reads, writes bool
}

func (s *survey) addPipe(d proc.Descriptor, flags int, where string) {
	inode, ok := d.Pipe()
	if !ok {
		return
	}
	p := s.pipes[inode]
	if p == nil {
		p = &pipeEnds{where: where}
		s.pipes[inode] = p
	}
	mode := flags & unix.O_ACCMODE
	p.reads = p.reads || mode != unix.O_WRONLY
	p.writes = p.writes || mode != unix.O_RDONLY
}

// lookAtPipes, after they were collected: one that leads out of the tree comes
// back with nobody at its other end, and writing to it is an error then.
func (s *survey) lookAtPipes() {
	halves := make(map[uint64]bool)
	for inode, p := range s.pipes {
		if !p.reads || !p.writes {
			halves[inode] = true
		}
	}
	users := s.pipeUsers(halves)
	for _, inode := range slices.Sorted(maps.Keys(users)) {
		does := "reads from"
		if s.pipes[inode].reads {
			does = "writes to"
		}
		user := users[inode]
		s.note(Warn, "pipe", fmt.Sprintf("process %d (%s), outside of the tree, %s pipe:[%d]: nobody will after a restore", user.PID, user.Comm, does, inode),
			fmt.Sprintf("restore with --inherit-fd 'fd[N]:pipe:[%d]' and an open descriptor N, or let the program use a file", inode), s.pipes[inode].where)
	}
}

// pipeUsers finds a process outside of the tree for each of some pipes; none for
// those whose other end is closed, which a restore changes nothing about.
func (s *survey) pipeUsers(inodes map[uint64]bool) map[uint64]proc.Owner {
	if len(inodes) == 0 {
		return nil
	}
	return proc.PipeUsers(func(pid int, inode uint64, flags int) bool {
		if !inodes[inode] || s.pids[pid] {
			return false
		}
		if s.pipes[inode].reads {
			return flags&unix.O_ACCMODE != unix.O_RDONLY
		}
		return flags&unix.O_ACCMODE != unix.O_WRONLY
	})
}
