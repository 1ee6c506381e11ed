package criu

// Processes that are to be dumped.
var ofProcesses = []explanation{
	one("The criu itself is within dumped tree", "Stasis was started by the tree that it should dump", "start it from outside of the tree"),
	one("Unseizable non-zombie", "a process cannot be stopped: a debugger holds it, or this user may not trace it",
		"end the debugger (TracerPid in /proc/PID/status), run as root, and see kernel.yama.ptrace_scope"),
	one("Unable to freeze cgroup", "a process does not stop in time: it sleeps in the kernel (state D)",
		"find it with ps -eo pid,state,wchan,comm, see to the disk or network it waits for, or give more time with --timeout"),
	one("Timeout reached", "a process does not stop in time: it sleeps in the kernel (state D), or its control group is frozen",
		"thaw the group, or find it with ps -eo pid,state,wchan,comm, see to the disk or network it waits for, or give more time with --timeout"),
	one("found while seizing", "a process ended while the tree was being stopped", "dump again"),
	one("Task pid reused while suspending", "processes come and go faster than they can be stopped", "dump again, or give --criu-opt 'freeze-cgroup PATH'"),
	one("A root task is dead", "the process has ended", "dump a process that runs"),
	one("pending SIGTRAP", "a process has a breakpoint signal pending", "end the debugger, and dump again"),
	one("Individually stopped threads", "single threads of a process are stopped", "send the process SIGCONT, and dump again"),
	one("Zombies with threads", "a process is ending, or its first thread has ended while others run", "dump again in a moment; the second no tool can dump: restart the program"),
	one("Zombie thread not supported", "the first thread of a process has ended while others run", "no tool can dump that; restart the program"),
	one("Can't make VM id", "a process shares its memory with its parent (CLONE_VM), or is about to execute a program (vfork)",
		"dump again; where it lasts, no tool can dump that"),
	one("Zombie with children", "a process is ending", "dump again in a moment"),
	one("unsupported stop signal", "a process is stopped by a signal in an unusual way", "send the process SIGCONT, and dump again"),
	one("suspending seccomp failed", "the seccomp filter of a process cannot be lifted for the dump",
		"run as root with CAP_SYS_ADMIN, outside of a container that filters ptrace"),
	one("Can't fetch filter", "the seccomp filter of a process cannot be read", "run as root with CAP_SYS_ADMIN, not under a seccomp filter"),
	one("Dumping seccomp filters not supported", "the kernel cannot hand out seccomp filters", "use one with CONFIG_SECCOMP_FILTER and CONFIG_CHECKPOINT_RESTORE"),
	both("seccomp: ", "returned", "the seccomp filter of a process cannot be set again", "restore as root with CAP_SYS_ADMIN, not under a seccomp filter"),
	one("failed to suspend seccomp", "the seccomp filter of a process cannot be lifted for the restore", "restore as root with CAP_SYS_ADMIN"),
	one("unsupported RSEQ ABI", "a process uses a newer rseq than this CRIU knows", "install a newer CRIU (scripts/install-criu)"),
	one("kernel lacks get_rseq_conf", "the kernel cannot tell about rseq", "use Linux 5.13 or newer, or start the program with GLIBC_TUNABLES=glibc.pthread.rseq=0"),
	one("rseq: can't restore", "this kernel lacks rseq", "use a kernel with CONFIG_RSEQ"),
	one("unprivileged task whose /proc doesn't belong to it", "a process of another user cannot read its own /proc", "mount /proc without hidepid for it"),
	one("Can't infect", "CRIU's code could not run in a process", "look for the error before this one with --log-level 4; a seccomp filter or a 32-bit program are the usual reasons"),
	one("No suitable VM found", "a process has no room for CRIU's code", "no tool can dump that; restart the program"),
}

// Numbers of processes that somebody else has.
var ofTakenNumbers = []explanation{
	both("Can't fork for", "File exists", "a pid of the tree is in use",
		"end the process that has it; one that was killed keeps it until its parent has collected it"),
	both("Unable to create a thread", "-17", "a thread id of the tree is in use", "end the process that has it, or restore again"),
	one("do not match expected", "a process got another pid than it had", "end the process that has it, or restore again"),
	one("Thread pid mismatch", "a thread got another number than it had", "end the process that has it, or restore again"),
}

// Numbers of processes.
var ofNumbers = []explanation{
	both("Can't fork for", "Invalid argument", "a pid of the tree is larger than this machine allows", "sysctl -w kernel.pid_max=4194304"),
	both("Can't fork for", "Operation not permitted", "processes with given pids may not be made", "restore as root with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE"),
	both("Can't fork for", "Resource temporarily unavailable", "the limit of processes is reached", "raise pids.max of the cgroup, or ulimit -u"),
	both("Unable to create a thread", "-11", "the limit of threads is reached", "raise pids.max of the cgroup, or ulimit -u"),
	one("Unable to create a thread", "a thread cannot be made with its number", "see whether its number is in use (ls /proc/NUMBER), and restore again"),
	one("Can't set kernel pid_max", "a pid of the tree is larger than this machine allows", "sysctl -w kernel.pid_max=4194304"),
	one("Setting PID failed", "the next pid cannot be set", "restore as root with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, with /proc/sys writable"),
	one("ns_last_pid", "the next pid cannot be set", "restore as root with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, with /proc/sys writable"),
	one("Conflict with a dead task", "a thread has the number of a process that has ended, whose /proc a program has open", "close that file before the dump"),
	one("Can't restore pgid", "the leader of a process group is missing", "dump a tree that holds the leader"),
}

// Memory and the CPU.
var ofMemory = []explanation{
	one("Unexpected rt vDSO area bounds", "this CRIU does not know the vdso of this kernel", "install CRIU 4.2 or newer (scripts/install-criu)"),
	one("Can't find rt vDSO", "this CRIU does not know the vdso of this kernel", "install CRIU 4.2 or newer (scripts/install-criu)"),
	one("two nonconsecutive vvar", "this CRIU does not know the vdso of this kernel", "install CRIU 4.2 or newer (scripts/install-criu)"),
	one("Task had vdso, restorer doesn't", "this kernel has no vdso, and that of the dump had", "restore on a kernel with vdso"),
	one("Compatible mode without vdso", "a 32-bit program, which this CRIU or kernel cannot restore", "use a kernel with CONFIG_IA32_EMULATION, and a CRIU built for it"),
	one("CPU instruction capabilities do not match", "this CPU lacks instructions that the one of the dump had", "restore on a like CPU, or with --cpu-cap none at your own risk"),
	one("FPU feature required by image", "this CPU lacks floating-point features that the one of the dump had", "restore on a like CPU, or with --cpu-cap none at your own risk"),
	one("CPU xfeatures has unsupported bits", "this CPU lacks register sets that the one of the dump had (such as AVX-512)", "restore on a like CPU, or with --cpu-cap none at your own risk"),
	one("CPU xsave", "this CPU saves its registers in another size than the one of the dump", "restore on a like CPU, or with --cpu-cap none at your own risk"),
	one("CPU capabilities do not match", "this CPU is not the one of the dump", "restore without --cpu-cap cpu, or on the same CPU"),
	one("but host cpu doesn't support it", "this CPU lacks xsave", "restore on a like CPU"),
	one("Core march mismatch", "the checkpoint is of another architecture", "restore it on a machine of its kind"),
	one("shadow stack", "a program uses shadow stacks (CET), which cannot be restored here", "use a kernel with CONFIG_X86_USER_SHADOW_STACK, or start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"),
	one("Can't handle non-regular mapping", "a program has mapped a device", "start it without (a GPU, for example), or use CRIU's plugin for it"),
	one("uprobes vma", "a tracer has put probes into a program", "end the tracer (bpftrace, perf), or dump with --criu-opt allow-uprobes"),
	one("allow-uprobes", "a tracer had put probes into a program", "restore with --criu-opt allow-uprobes"),
	one("Unsupported mapping found", "a program has a mapping that cannot be dumped", "close what made it (memfd_secret, a device) before the dump"),
	one("Bogus mapping", "a program has a mapping that cannot be dumped", "close what made it (memfd_secret, a device) before the dump"),
	one("Can't open map_files", "the mapped files of a process cannot be looked at", "run as root with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE"),
	one("map_files is inaccessible", "the mapped files of a process cannot be looked at", "use a kernel with CONFIG_CHECKPOINT_RESTORE"),
	one("doesn't live in IPC ns", "a program uses System V shared memory of the whole machine",
		"start it in an IPC namespace of its own (unshare --ipc), or let it use POSIX shared memory"),
	one("Sysv shmem", "a program has attached a part of a System V shared memory only", "let it attach the whole segment"),
	one("Can't restore high memory region", "the checkpoint uses 5-level page tables, and this machine has 4", "restore on a machine with la57"),
	one("Unable to open an userfaultfd", "no userfaultfd can be made", "run as root, and use a kernel with CONFIG_USERFAULTFD"),
	one("UFFD is not supported", "the kernel lacks userfaultfd", "use one with CONFIG_USERFAULTFD"),
	one("Lazy pages are not available", "the kernel lacks userfaultfd", "use one with CONFIG_USERFAULTFD"),
	one("Failed to get uffd API", "the kernel's userfaultfd lacks a feature that CRIU needs", "use Linux 4.11 or newer, as root"),
	one("lazy-pages: register", "a mapping cannot be filled later", "restore without --lazy"),
	both("connect to ", "lazy-pages.socket", "CRIU could not reach Stasis, which brings the memory", "restore again; if it stays, report it"),
	one("PAGEMAP_SCAN", "the kernel's PAGEMAP_SCAN failed", "use --engine criu, and report it with the kernel's version"),
	one("Can't restore shmem content", "shared memory cannot be filled", "see that /dev/shm and memory have room"),
	one("Can't read pages data", "the pages in the checkpoint are not whole", "stasis verify says what is damaged"),
	both("Can't restore", "mapping with", "memory cannot be mapped where it was",
		"see vm.max_map_count, vm.overcommit_memory and vm.mmap_min_addr; they have to be as on the machine of the dump"),
	one("Can't mmap section for restore code", "there is no memory for CRIU's code", "see vm.overcommit_memory and the limit of the memory cgroup"),
	one("Unable to reserve memory", "there is not enough memory", "end other programs, or see vm.overcommit_memory (ulimit -v as well)"),
	one("Collect mappings", "the mappings of a process cannot be read", "look for the error before this one with --log-level 4"),
}

// Mounts.
var ofMounts = []explanation{
	one("The --root option is required", "the tree had mounts of its own", "restore with --root and the folder that holds its root"),
	one("doesn't have a proper root mount", "a mount of the tree comes from outside of it", "dump with --external mnt[PATH]:NAME, and restore with --external mnt[NAME]:PATH"),
	one("has unreachable sharing", "a mount shares its changes with one outside of the tree", "dump and restore with --criu-opt enable-external-masters"),
	one("is autodetected external mount", "a mount of the tree came from outside of it", "restore with --external mnt[]"),
	one("No mapping for", "a mount of the tree came from outside of it", "restore with --external mnt[NAME]:PATH"),
	both("FS mnt", "unsupported", "a file system of the tree is of a kind that cannot be dumped", "unmount it, or give it as --external mnt[PATH]:NAME, or allow it with --criu-opt 'enable-fs NAME'"),
	one("Unable to dump a file system", "the content of a file system cannot be dumped", "see that tar is installed, and that the folder for work files has room"),
	one("A few mount points can't be mounted", "some mounts of the tree cannot be made again", "see that their devices and folders are there"),
	one("Can't mount at", "a mount of the tree cannot be made again", "see that its device and folder are there"),
	both("Unable to mount", "(id=", "a mount of the tree cannot be made again", "see that its device and folder are there"),
	one("Can't bind-mount at", "a mount of the tree cannot be made again", "see that its source is there"),
	one("has two children with same", "two mounts lie on the same folder", "unmount one of them before the dump"),
	one("Resolving over invalid device", "a file system cannot be found by its device", "give it as --external mnt[PATH]:NAME"),
	one("The root task has another root than mntns", "the tree runs in a chroot of its own mount namespace", "dump with --root and that folder"),
	one("pivot_root", "the root of the tree cannot be entered", "--root has to be a mount point: mount --bind FOLDER FOLDER"),
	one("Autofs", "an autofs mount is in the tree", "unmount it before the dump"),
}

// Namespaces.
var ofNamespaces = []explanation{
	one("can only be restored in a new pid namespace", "the tree begins with a process 1", "dump it from outside of its pid namespace"),
	one("Can't restore pid namespace without the process init", "the tree had a pid namespace, and its process 1 was not dumped", "dump its process 1"),
	one("Can't dump a pid namespace without the process init", "the process lives in a pid namespace, and is not its process 1",
		"dump its process 1, or run Stasis inside that namespace"),
	one("Can't dump nested time namespace", "a process has children in another time namespace", "restart it without"),
	one("Can't dump nested", "a process of the tree has a namespace that its root does not share", "dump that process alone, or its parent without it"),
	one("Can't switch to pid's", "a mount namespace of the tree cannot be entered", "run as root with CAP_SYS_ADMIN"),
	one("One or more namespaces doesn't belong to the target user namespace", "the tree mixes namespaces of several users", "dump from the user namespace that owns them"),
	one("Can't restore sub-task in NS", "a process has namespaces that the root of the tree does not share", "dump that process alone"),
	one("Failed to setns when join-ns", "a namespace of --join-ns cannot be entered", "run as root, and see that the namespace is of the kind that was given"),
	one("Can't access join-ns file", "a namespace of --join-ns is not there", "see that its process or file exists"),
	one("Invalid join_ns pid", "the process of --join-ns is not there", "give one that runs"),
	one("Unable to find an external netns", "a network namespace that came from outside is missing", "restore with --inherit-fd FD:KEY and that namespace"),
	one("IP tool failed", "the ip program failed", "install iproute2"),
	one("Unsupported link", "a network interface is of a kind that cannot be dumped", "remove it from the namespace before the dump, or give the namespace with --external net[INODE]:NAME"),
	one("Can't restore link", "a network interface cannot be made again", "see whether one of that name exists, and whether its module is there"),
	one("Can't restore iptables dump", "iptables is missing", "install it"),
	one("nft command error", "the nftables rules cannot be set again", "see that the kernel has the modules that they need"),
	one("IFLA_NEW_IFINDEX isn't supported", "the kernel cannot number network interfaces", "use a newer kernel"),
	one("Unable to create a new netns", "no network namespace can be made", "see user.max_net_namespaces, and run as root"),
	one("Unable to create a new mntns", "no mount namespace can be made", "see user.max_mnt_namespaces, and run as root"),
	one("Unable to create a new time namespace", "the kernel lacks time namespaces", "use one with CONFIG_TIME_NS"),
	one("Failed to restore sem id", "an id of System V IPC is in use", "find it with ipcs, and remove it"),
	one("Failed to restore shm id", "an id of System V IPC is in use", "find it with ipcs, and remove it"),
	one("Failed to restore msg id", "an id of System V IPC is in use", "find it with ipcs, and remove it"),
}

// Control groups.
var ofCgroups = []explanation{
	one("Neither a cgroupv1", "the freezer cgroup that was given is none", "give the path of a cgroup with cgroup.freeze or freezer.state"),
	one("freezer.state", "a freezer cgroup cannot be used", "see that the tree is not frozen by another program"),
	one("Can't move into", "a process cannot be put into its cgroup", "restore with --manage-cgroups ignore, or make the cgroup"),
	one("cgroupd: Can't move thread", "a thread cannot be put into its cgroup", "restore with --manage-cgroups ignore, or make the cgroup"),
	both("Cgroup dir", "doesn't exist", "a cgroup of the tree is missing", "make it, or restore with --manage-cgroups soft or ignore"),
	one("Abort restore of existing cgroups", "a cgroup of the tree exists already", "remove it, or restore with --manage-cgroups soft or ignore"),
	one("Can't make cgroup dir", "a cgroup of the tree cannot be made", "restore with --manage-cgroups ignore"),
	one("CG paths mismatch", "the cgroups of the tree do not fit to --cgroup-root", "see the paths, or use --manage-cgroups ignore"),
	one("Unable to configure the cgroup", "a cgroup hierarchy of the tree is not here", "use --manage-cgroups ignore"),
	one("cgroup ", "the cgroups of the tree cannot be read or set", "use --manage-cgroups ignore"),
}

// Rights.
var ofRights = []explanation{
	both("Can't get rlimit", "Operation not permitted", "the limits of another user's process cannot be read: CAP_SYS_RESOURCE is missing",
		"run as root with all capabilities"),
	one("Can't get rlimit", "the limits of a process cannot be read", "run as root with CAP_SYS_RESOURCE"),
	one("Can't restore cur > max", "a limit is higher than this user may set", "restore as root with CAP_SYS_RESOURCE"),
	one("oom_score_adj failed", "the OOM score of a process cannot be lowered", "restore as root with CAP_SYS_RESOURCE"),
	one("Unable to restore capabilities", "a process had capabilities that this Stasis lacks", "restore as root with all capabilities"),
	one("Unable to drop capability", "the capabilities of a process cannot be set", "restore as root with CAP_SETPCAP"),
	one("Unable to raise ambient capability", "a process had capabilities that this Stasis lacks", "restore as root with all capabilities"),
	one("Can't setgroups", "the groups of a process cannot be set", "restore as root with CAP_SETGID"),
	one("saved user ID", "the user of a process cannot be set", "restore as root with CAP_SETUID"),
	one("saved group ID", "the group of a process cannot be set", "restore as root with CAP_SETGID"),
	one("sys_prctl(PR_SET_MM, PR_SET_MM_MAP) failed", "the layout of a process' memory cannot be set", "restore as root with CAP_SYS_RESOURCE, or CAP_CHECKPOINT_RESTORE from Linux 5.9 on"),
	one("PR_SET_MM", "the layout of a process' memory cannot be set", "restore as root with CAP_SYS_RESOURCE"),
	one("loginuid", "the login user of a process cannot be set", "restore as root with CAP_AUDIT_CONTROL"),
	one("You need to be root", "CRIU needs root", "run Stasis as root"),
	one("apparmor", "the AppArmor profile of a process cannot be set", "load the profile, or restore with --criu-opt 'lsm-profile apparmor:unconfined'"),
	one("SELinux", "the SELinux context of a process cannot be set", "see the audit log, or restore with --criu-opt 'lsm-profile selinux:CONTEXT'"),
	one("lsm profile", "the security profile of a process cannot be set", "load the profile, or restore with --criu-opt 'lsm-profile …'"),
	one("SO_SNDBUFFORCE", "a socket's buffer is larger than allowed", "restore as root with CAP_NET_ADMIN"),
}

// The machine.
var ofHost = []explanation{
	one("kcmp is not supported", "the kernel lacks kcmp", "use one with CONFIG_CHECKPOINT_RESTORE or CONFIG_KCMP"),
	one("when initializing kerndat", "CRIU does not get along with this kernel", "install a newer CRIU (scripts/install-criu), and see stasis check"),
	one("Can't open images directory", "the folder for work files is gone", "see that nothing cleans up /run and /tmp while Stasis works"),
	both("Unable to load", ".so", "a plugin of CRIU cannot be loaded", "remove it from CRIU's plugin folder, or install what it needs"),
	one("Missing required plugin", "the checkpoint needs a plugin of CRIU", "install it into CRIU's plugin folder"),
	one("Can't send the final package", "the page server went away", "see its own log"),
	one("The page server doesn't answer", "the page server went away", "see its own log"),
}

// Programs that CRIU runs at its stages.
var ofScripts = []explanation{
	both("Script ", "exited with", "an action script failed",
		"run the script of --action-script by hand, with CRTOOLS_SCRIPT_ACTION set, and see what it says"),
}

// CRIU's images.
var ofImages = []explanation{
	one("Not supported images version", "the checkpoint was made by a newer CRIU", "install a CRIU as new as that one (scripts/install-criu)"),
	one("Unknown file type", "the checkpoint was made by a newer CRIU", "install a CRIU as new as that one (scripts/install-criu)"),
	one("too old criu was used for dump", "the checkpoint was made by a CRIU that is too old", "restore it with that CRIU, and dump it again"),
	one("Too old image", "the checkpoint was made by a CRIU that is too old", "restore it with that CRIU, and dump it again"),
	one("agic doesn't match", "an image of CRIU is damaged", "stasis verify says what is damaged"),
	one("Unexpected EOF on", "an image of CRIU is cut off", "stasis verify says what is damaged"),
	one("Failed unpacking object", "an image of CRIU is damaged, or of a newer CRIU", "stasis verify says what is damaged; else install a newer CRIU"),
	one("mage corrupt", "an image of CRIU is damaged", "stasis verify says what is damaged"),
	one("Can't write img file", "CRIU could not write an image", "see that the folder for work files has room"),
	one("Img trimmed", "CRIU could not write or read a whole image", "see that the folder for work files has room"),
	both("Unable to open ", ".img", "an image of CRIU is missing", "stasis verify says what is damaged"),
}
