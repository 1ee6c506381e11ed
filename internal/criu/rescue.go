package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// inventoryDumpUUID is dump_uuid in CRIU's inventory.proto (CRIU 4.0).
const inventoryDumpUUID = 13

// WasKilled says whether the error of [Session.Close] tells that a signal ended
// CRIU: then it has undone nothing of what it did to the tree.
func WasKilled(closed error) bool {
	exit := (*exec.ExitError)(nil)
	if !errors.As(closed, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// Alive says whether CRIU still runs, and so holds a tree that it has frozen.
func (s *Session) Alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	// WNOWAIT leaves the status to Close.
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, s.PID(), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == 0
}

// Remains say what a CRIU that was killed in a dump may have left on the
// connections of a tree: a lock in the firewall, and sockets in the repair mode of
// tcp(7) that can neither send nor receive. The processes themselves are let go
// by the kernel.
type Remains struct {
	WorkDir  string `json:"work_dir"` // with the images and the log, as far as they were written
	Table    string `json:"table"`    // of nftables; "": it is looked for in WorkDir
	Iptables bool   `json:"iptables"` // the lock is one of iptables
}

// Undo undoes what was left on a tree that lives, in the network namespace that
// its processes have.
func (r Remains) Undo(pids []int) error {
	var problems []error
	err := inNetworkOf(pids, func(own bool) error { return r.unlock(pids, own) })
	if err != nil {
		problems = append(problems, err)
	}
	for _, pid := range pids {
		if err := endRepair(pid); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// unlock removes the lock. own: the tree has a network of its own, and this is it.
func (r Remains) unlock(pids []int, own bool) error {
	if r.Iptables {
		return unlockIptables(pids, own)
	}
	for _, name := range r.tables() {
		if err := deleteTable(name); err != nil {
			return fmt.Errorf("connections of the tree are locked by the table %q of nftables, which could not be removed: %w; run: nft delete table inet %s", name, err, name)
		}
	}
	return nil
}

var tableInLog = regexp.MustCompile(`inet (CRIU-[0-9a-f-]+) `)

// tables are the names that the table of the lock may have.
func (r Remains) tables() []string {
	if r.Table != "" {
		return []string{r.Table}
	}
	if name, err := lockTable(r.WorkDir); err == nil {
		return []string{name}
	}
	log, err := os.ReadFile(filepath.Join(r.WorkDir, "dump.log"))
	if err != nil {
		return nil
	}
	if found := tableInLog.FindSubmatch(log); found != nil {
		return []string{string(found[1])}
	}
	return nil
}

// lockTable is the name of the table in which CRIU locks the connections of a
// dump, as its images have it at the end.
func lockTable(workDir string) (string, error) {
	var id string
	err := readEntries(filepath.Join(workDir, "inventory.img"), func(raw []byte) error {
		id = stringField(raw, inventoryDumpUUID)
		return nil
	})
	if err == nil && id == "" {
		err = errors.New("no id in inventory.img")
	}
	if err != nil {
		return "", err
	}
	return tableOf(id), nil
}

// tableOf is the name of a table after a uuid. CRIU keeps it in 32 bytes, with
// "inet " before it.
func tableOf(uuid string) string {
	full := "inet CRIU-" + uuid
	return strings.TrimPrefix(full[:min(len(full), 31)], "inet ")
}

// stringField finds a field of a message that our library does not know yet.
func stringField(message []byte, field protowire.Number) string {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return ""
		}
		message = message[n:]
		if number == field && kind == protowire.BytesType {
			value, _ := protowire.ConsumeString(message)
			return value
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return ""
		}
		message = message[n:]
	}
	return ""
}

// deleteTable removes a table of the family inet, with all that is in it, as
// nft(8) does. One that is not there is no error.
func deleteTable(name string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	attribute := binary.NativeEndian.AppendUint16(nil, uint16(4+len(name)+1))
	attribute = binary.NativeEndian.AppendUint16(attribute, unix.NFTA_TABLE_NAME)
	attribute = append(append(attribute, name...), 0)

	batch := netfilterMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	batch = append(batch, netfilterMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, unix.NFPROTO_INET, 0, attribute)...)
	batch = append(batch, netfilterMessage(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	const status = unix.NLMSG_HDRLEN
	if n < status+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("netlink: an answer that is none")
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(answer[status:]))); errno != 0 && errno != unix.ENOENT {
		return errno
	}
	return nil
}

// netfilterMessage is a message of netlink(7) with netfilter's own header.
func netfilterMessage(kind, flags uint16, family uint8, resource uint16, payload []byte) []byte {
	const header = unix.NLMSG_HDRLEN + 4
	m := make([]byte, header, header+len(payload)+3)
	binary.NativeEndian.PutUint32(m, uint32(header+len(payload)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	m[unix.NLMSG_HDRLEN] = family
	binary.BigEndian.PutUint16(m[unix.NLMSG_HDRLEN+2:], resource)
	m = append(m, payload...)
	for len(m)%4 != 0 {
		m = append(m, 0)
	}
	return m
}

// endRepair takes all TCP sockets of a process out of the repair mode.
func endRepair(pid int) error {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		return nil // it has ended
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(process)
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		number, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			continue
		}
		socket, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		err = endRepairOf(socket)
		unix.Close(socket)
		if err != nil {
			return fmt.Errorf("the TCP connection of descriptor %d of process %d stays in CRIU's repair mode: %w", number, pid, err)
		}
	}
	return nil
}

func endRepairOf(socket int) error {
	// A socket of another kind has no such option, and says 0 here as well.
	on, _ := unix.GetsockoptInt(socket, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if on == 0 {
		return nil
	}
	return unix.SetsockoptInt(socket, unix.IPPROTO_TCP, unix.TCP_REPAIR, 0)
}
