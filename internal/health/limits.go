package health

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/config"
	"stasis/internal/proc"
)

// Below these, a result warns.
const (
	enoughFiles    = 4096      // descriptors: 2 for each 2 MiB with --engine lazy-pages
	enoughPipe     = 4 << 20   // bytes, for CRIU's own lazy pages
	enoughMappings = 65530     // the kernel's default; Java and databases have many
	enoughPIDs     = 32768     // the smallest default
	enoughMemory   = 512 << 20 // bytes: Stasis itself and the last pages of a dump
	enoughWork     = 64 << 20  // bytes for CRIU's images
	enoughDisk     = 1 << 30   // bytes for checkpoints
)

// socketDiag asks as CRIU does; a module may have to be loaded for it.
func socketDiag() Result {
	const name, remedy = "sock_diag", "load its modules: modprobe -a unix_diag tcp_diag udp_diag inet_diag netlink_diag af_packet_diag"
	if _, err := proc.UnixPeers(os.Getpid()); err != nil {
		return fail(name, err.Error(), remedy)
	}
	if _, err := proc.Listeners(); err != nil {
		return fail(name, err.Error(), remedy)
	}
	return ok(name, "yes")
}

// network looks for what holds back the packets of TCP connections during a
// dump and until their restore.
func network(ctx context.Context) Result {
	const name = "TCP connections"
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nft, nftErr := works(ctx, "nft", "list", "tables")
	iptables, iptablesErr := works(ctx, "iptables", "-w", "-S")
	switch {
	case nft != "" && nftErr == nil:
		return ok(name, "packets are held back with nftables")
	case iptables != "" && iptablesErr == nil:
		return warn(name, "nftables does not work here, iptables does", "dump and restore connections with --network-lock iptables, or install nftables")
	case nft != "":
		return warn(name, fmt.Sprintf("%s does not work: %v", nft, nftErr), "load the module (modprobe nf_tables), or run with CAP_NET_ADMIN; without, connections can only be dropped (--tcp-close)")
	default:
		return warn(name, "neither nftables nor iptables is installed", "install nftables to dump and restore connections (--tcp-established); without, they can only be dropped (--tcp-close)")
	}
}

// works runs a program that only reads, and returns its path; "" if it is not
// installed.
func works(ctx context.Context, name string, args ...string) (path string, err error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err = exec.LookPath(candidate); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return path, fmt.Errorf("%w %s", err, first)
	}
	return path, nil
}

// pids looks for what gives restored processes their pids back.
func pids() Result {
	const name = "pids"
	limit, err := readNumber("/proc/sys/kernel/pid_max")
	if err != nil {
		return fail(name, err.Error(), "mount /proc")
	}
	if err := unix.Access("/proc/sys/kernel/ns_last_pid", unix.W_OK); err != nil {
		return warn(name, "kernel.ns_last_pid cannot be written: "+err.Error(), "mount /proc/sys for writing; containers mostly have it read-only")
	}
	if limit < enoughPIDs {
		return warn(name, fmt.Sprintf("kernel.pid_max is %d: a tree with larger pids cannot be restored", limit), "sysctl -w kernel.pid_max=4194304")
	}
	return ok(name, "kernel.pid_max %d", limit)
}

func openFiles() Result {
	const name = "RLIMIT_NOFILE"
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fail(name, err.Error(), "")
	}
	if limit.Max < enoughFiles {
		return warn(name, fmt.Sprintf("%d: programs with more open files cannot be restored", limit.Max), "raise it: ulimit -n 1048576, or LimitNOFILE of the service")
	}
	return ok(name, "%d", limit.Max)
}

func pipes() Result {
	const name = "fs.pipe-max-size"
	limit, err := readNumber("/proc/sys/fs/pipe-max-size")
	if err != nil {
		return fail(name, err.Error(), "mount /proc")
	}
	if limit < enoughPipe && !hasCapability(unix.CAP_SYS_RESOURCE) {
		return warn(name, fmt.Sprintf("%d, and no CAP_SYS_RESOURCE to pass it: larger pipes cannot be restored", limit), "sysctl -w fs.pipe-max-size=4194304")
	}
	return ok(name, "%d", limit)
}

func overcommit() Result {
	const name = "vm.overcommit_memory"
	mode, err := readNumber("/proc/sys/vm/overcommit_memory")
	if err != nil {
		return fail(name, err.Error(), "mount /proc")
	}
	if mode == 2 {
		return warn(name, "2: programs that reserve much (Go, Java, sanitizers) may not be restored", "sysctl -w vm.overcommit_memory=0")
	}
	return ok(name, "%d", mode)
}

func mappings() Result {
	const name = "vm.max_map_count"
	limit, err := readNumber("/proc/sys/vm/max_map_count")
	if err != nil {
		return fail(name, err.Error(), "mount /proc")
	}
	if limit < enoughMappings {
		return warn(name, fmt.Sprintf("%d: programs with more mappings cannot be restored", limit), "sysctl -w vm.max_map_count=262144")
	}
	return ok(name, "%d", limit)
}

// hugePages is for information.
func hugePages() Result {
	const name = "transparent huge pages"
	raw, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		return ok(name, "not in this kernel")
	}
	_, rest, _ := strings.Cut(string(raw), "[")
	mode, _, _ := strings.Cut(rest, "]")
	r := ok(name, "%s", mode)
	if mode == "never" {
		r.Remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled fills restored memory faster, for programs that ask for huge pages"
	}
	return r
}

func memory() Result {
	const name = "memory"
	figures, err := proc.MemoryInfo()
	if err != nil {
		return fail(name, err.Error(), "mount /proc")
	}
	free, total := figures["MemAvailable"], figures["MemTotal"]
	text := fmt.Sprintf("%s of %s available", size(free), size(total))
	if free < enoughMemory {
		return warn(name, text, "end other programs, or add memory: the last pages of a dump are kept in RAM")
	}
	return ok(name, "%s", text)
}

// workFolders looks for a folder in memory for CRIU's images, so that no disk
// is waited for while a tree is frozen.
func workFolders() Result {
	const name = "work folder"
	var seen []string
	for _, dir := range []string{"/run", "/dev/shm"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || unix.Access(dir, unix.W_OK) != nil {
			continue
		}
		free := fs.Bavail * uint64(fs.Bsize)
		if free >= enoughWork {
			return ok(name, "%s, in memory, %s free", dir, size(free))
		}
		seen = append(seen, fmt.Sprintf("%s has %s free", dir, size(free)))
	}
	if seen == nil {
		seen = append(seen, "neither /run nor /dev/shm is a tmpfs that can be written")
	}
	return warn(name, strings.Join(seen, ", "), "mount a tmpfs on /run, or make room there: else a disk is waited for while the tree stands still")
}

// checkpointFolder looks at the default folder, where checkpoints go by name.
func checkpointFolder() Result {
	settings, err := config.Load("", os.Environ())
	if err != nil {
		return fail("checkpoint folder", err.Error(), "correct the configuration")
	}
	return Folder(settings.Checkpoint.Dir)
}

// Folder says whether checkpoints can be written to a folder, which need not
// exist yet.
func Folder(dir string) Result {
	const name = "checkpoint folder"
	there := dir
	for there != "/" && there != "." {
		if _, err := os.Stat(there); err == nil {
			break
		}
		there = filepath.Dir(there)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(there, &fs); err != nil {
		return fail(name, fmt.Sprintf("%s: %v", there, err), "choose another folder (checkpoint.dir of the configuration, or --dir)")
	}
	if err := unix.Access(there, unix.W_OK); err != nil {
		return fail(name, fmt.Sprintf("%s cannot be written: %v", there, err), "choose another folder (checkpoint.dir of the configuration, or --dir)")
	}
	free := fs.Bavail * uint64(fs.Bsize)
	text := fmt.Sprintf("%s: %s free", dir, size(free))
	if free < enoughDisk {
		return warn(name, text, "make room, or choose another folder (checkpoint.dir of the configuration, or --dir)")
	}
	return ok(name, "%s", text)
}
