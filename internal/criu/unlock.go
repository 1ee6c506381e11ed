package criu

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	// lockMark is what CRIU marks its own packets with; its rules spare them.
	lockMark = "0xc114"
	// lockChain is the chain of iptables that locks a network as a whole.
	lockChain = "CRIU"

	// A rule that the killed CRIU had an iptables at work on may still come.
	settlePause = 100 * time.Millisecond
	settleLimit = 20 * time.Second
)

// inNetworkOf works in the network namespace of a tree. own says whether that is
// another one than this process has.
func inNetworkOf(pids []int, work func(own bool) error) error {
	if len(pids) == 0 {
		return nil
	}
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("look at the network namespace: %w", err)
	}
	path := fmt.Sprintf("/proc/%d/ns/net", pids[0])
	theirs, err := os.Readlink(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has ended
	} else if err != nil {
		return fmt.Errorf("look at the network namespace of process %d: %w", pids[0], err)
	}
	if ours == theirs {
		return work(false)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		done <- enter(path, work)
	}()
	return <-done
}

func enter(path string, work func(own bool) error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter the tree's network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the tree's network namespace: %w", err)
	}
	return work(true)
}

// unlockIptables removes the rules by which CRIU has locked a tree: one chain for
// all of a network of its own, else two rules for each connection.
func unlockIptables(pids []int, own bool) error {
	connections := connectionsOf(pids)
	for deadline, quiet := time.Now().Add(settleLimit), 0; quiet < 2; <-time.After(settlePause) {
		found := false
		for _, program := range []string{"iptables", "ip6tables"} {
			rules, err := lockRules(program, own, connections)
			if err != nil {
				return fmt.Errorf("connections of the tree may be locked by rules of %s: %w; %s -S shows them, with the mark %s", program, err, program, lockMark)
			}
			for _, rule := range rules {
				found = true
				if out, err := iptables(program, rule...); err != nil {
					return fmt.Errorf("a rule that locks connections of the tree could not be removed: %w: %s; run: %s %s", err, out, program, strings.Join(rule, " "))
				}
			}
		}
		if quiet++; found {
			quiet = 0
		}
		if time.Now().After(deadline) {
			return errors.New("rules that lock connections of the tree come again and again: see who makes them, and remove those with the mark " + lockMark)
		}
	}
	return nil
}

// lockRules are the commands that remove what locks the tree, in their order. A
// program that is not installed has locked nothing.
func lockRules(program string, own bool, connections map[connection]bool) (commands [][]string, err error) {
	out, err := iptables(program, "-S")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	chain := false
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case own && fields[0] == "-N" && fields[1] == lockChain:
			chain = true
		case own && fields[0] == "-A" && strings.Contains(line, "-j "+lockChain),
			!own && fields[0] == "-A" && isLock(fields, connections):
			commands = append(commands, append([]string{"-D"}, fields[1:]...))
		}
	}
	if chain {
		commands = append(commands, []string{"-F", lockChain}, []string{"-X", lockChain})
	}
	return commands, nil
}

// isLock says whether a rule drops the packets of one of the connections, as
// CRIU's do.
func isLock(rule []string, connections map[connection]bool) bool {
	value := make(map[string]string)
	for i := 0; i+1 < len(rule); i++ {
		value[rule[i]] = rule[i+1]
	}
	mark, _, _ := strings.Cut(value["--mark"], "/")
	if mark != lockMark || value["-j"] != "DROP" {
		return false
	}
	from, err1 := endpoint(value["-s"], value["--sport"])
	to, err2 := endpoint(value["-d"], value["--dport"])
	return err1 == nil && err2 == nil && connections[connection{from, to}]
}

// connection is one direction of a TCP connection.
type connection struct{ from, to netip.AddrPort }

func endpoint(address, port string) (netip.AddrPort, error) {
	address, _, _ = strings.Cut(address, "/")
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(ip.Unmap(), uint16(number)), err
}

// connectionsOf lists the TCP connections of a tree, in both directions.
func connectionsOf(pids []int) map[connection]bool {
	all := make(map[connection]bool)
	for _, pid := range pids {
		for _, s := range socketsOf(pid) {
			local, err1 := netip.ParseAddrPort(s.Local)
			remote, err2 := netip.ParseAddrPort(s.Remote)
			if err1 != nil || err2 != nil || !strings.HasPrefix(s.Protocol, "tcp") {
				continue
			}
			local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
			remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
			all[connection{local, remote}], all[connection{remote, local}] = true, true
		}
	}
	return all
}

// socketsOf lists the sockets of a process; none where it has ended.
func socketsOf(pid int) map[uint64]proc.Socket {
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return nil
	}
	defer files.Close()
	descriptors, err := files.List()
	if err != nil {
		return nil
	}
	inodes := make(map[uint64]bool)
	for _, d := range descriptors {
		if inode, isSocket := d.Socket(); isSocket {
			inodes[inode] = true
		}
	}
	sockets, err := proc.Sockets(pid, inodes)
	if err != nil {
		return nil
	}
	return sockets
}

// iptables runs the program, which may lie where only root's PATH leads. It waits
// for others that change the rules.
func iptables(program string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(program)
	for _, folder := range []string{"/usr/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(folder + program)
		}
	}
	if err != nil {
		return nil, exec.ErrNotFound
	}
	return exec.Command(path, append([]string{"-w"}, args...)...).CombinedOutput()
}
