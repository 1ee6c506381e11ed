package cli

import (
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"stasis"
)

// criuFlag is an option that is CRIU's, under CRIU's name.
type criuFlag struct {
	name, short string
	field       func(*stasis.CRIUOptions) any // pointer to the field that it sets
	help        string
	words       []string // the values that it takes, where there are few
	bare        string   // value of the flag without one
	only        string   // command that has it alone, or ""
}

// criuFlags lists them in the order of the help.
var criuFlags = []criuFlag{
	{name: "shell-job", short: "j", field: func(o *stasis.CRIUOptions) any { return &o.ShellJob },
		help: "the tree was started from a shell: its session leader or terminal is outside of it"},
	{name: "tcp-established", field: func(o *stasis.CRIUOptions) any { return &o.TCPEstablished },
		help: "keep established TCP connections"},
	{name: "tcp-close", field: func(o *stasis.CRIUOptions) any { return &o.TCPClose },
		help: "keep established TCP connections as closed ones"},
	{name: "skip-in-flight", only: "dump", field: func(o *stasis.CRIUOptions) any { return &o.SkipInFlight },
		help: "leave out TCP connections that are still being made"},
	{name: "ext-unix-sk", short: "x", field: func(o *stasis.CRIUOptions) any { return &o.ExtUnixSk },
		help: "allow Unix sockets whose other end is outside of the tree"},
	{name: "file-locks", short: "l", field: func(o *stasis.CRIUOptions) any { return &o.FileLocks },
		help: "keep file locks; only safe where all users of a locked file are in the tree"},
	{name: "link-remap", field: func(o *stasis.CRIUOptions) any { return &o.LinkRemap },
		help: "give open files that lost their name another one, next to the old"},
	{name: "ghost-limit", only: "dump", field: func(o *stasis.CRIUOptions) any { return &o.GhostLimit },
		help: "keep open deleted files up to this `SIZE` (CRIU's default is 1M)"},
	{name: "external", field: func(o *stasis.CRIUOptions) any { return &o.External },
		help: "a `RESOURCE` that the restore gets from outside, such as mnt[/data]:data or tty[8801:1]; may be repeated"},
	{name: "root", short: "r", field: func(o *stasis.CRIUOptions) any { return &o.Root },
		help: "`DIR` that is the root of the tree's own mount namespace"},
	{name: "join-ns", short: "J", field: func(o *stasis.CRIUOptions) any { return &o.JoinNS },
		help: "restore into an existing namespace, `KIND:PID` or KIND:FILE, such as net:/run/netns/blue; may be repeated"},
	{name: "manage-cgroups", field: func(o *stasis.CRIUOptions) any { return &o.ManageCgroups }, bare: "soft",
		words: []string{"ignore", "none", "props", "soft", "full", "strict"},
		help:  "keep cgroups and their properties, in this `MODE`: ignore, none, props, soft, full or strict"},
	{name: "action-script", field: func(o *stasis.CRIUOptions) any { return &o.ActionScript },
		help: "`PROGRAM` that CRIU runs at its stages, with the stage in CRTOOLS_SCRIPT_ACTION"},
	{name: "timeout", only: "dump", field: func(o *stasis.CRIUOptions) any { return &o.Timeout },
		help: "give up when the tree cannot be frozen within so many `SECONDS` (CRIU's default is 10)"},
	{name: "cpu-cap", field: func(o *stasis.CRIUOptions) any { return &o.CPUCap }, bare: "all",
		help: "how strictly the processor of dump and restore must agree, a `LIST` of cpu, fpu, all, ins, none"},
	{name: "file-validation", field: func(o *stasis.CRIUOptions) any { return &o.FileValidation },
		words: []string{"filesize", "buildid"},
		help:  "`HOW` to see that a file is still the same: filesize or buildid"},
	{name: "network-lock", field: func(o *stasis.CRIUOptions) any { return &o.NetworkLock },
		words: []string{"iptables", "nftables", "skip"},
		help:  "`HOW` to hold back packets meanwhile: iptables, nftables or skip"},
	{name: "log-level", short: "v", field: func(o *stasis.CRIUOptions) any { return &o.LogLevel }, bare: oneMore,
		help: "`LEVEL` of CRIU's log, 0 to 4; -v4 or -vvvv as with CRIU"},
	{name: "criu-opt", field: func(o *stasis.CRIUOptions) any { return &o.Raw },
		help: "a `LINE` of CRIU's configuration file, such as \"irmap-scan-path /srv\", for whatever has no flag here; may be repeated"},
}

// addCRIUFlags gives a command, dump or restore, the flags that it has. They set o.
func addCRIUFlags(cmd *cobra.Command, kind string, o *stasis.CRIUOptions) {
	flags := cmd.Flags()
	for _, f := range criuFlags {
		if f.only != "" && f.only != kind {
			continue
		}
		f.add(flags, o)
		if f.bare != "" {
			flags.Lookup(f.name).NoOptDefVal = f.bare
		}
		if len(f.words) > 0 {
			must(cmd.RegisterFlagCompletionFunc(f.name, cobra.FixedCompletions(f.words, cobra.ShellCompDirectiveNoFileComp)))
		}
	}
	must(cmd.MarkFlagDirname("root"))
}

func (f *criuFlag) add(flags *pflag.FlagSet, o *stasis.CRIUOptions) {
	switch into := f.field(o).(type) {
	case *bool:
		flags.BoolVarP(into, f.name, f.short, false, f.help)
	case *string:
		if len(f.words) > 0 {
			flags.VarP(oneOf{into, f.words}, f.name, f.short, f.help)
			return
		}
		flags.StringVarP(into, f.name, f.short, "", f.help)
	case *[]string:
		flags.StringArrayVarP(into, f.name, f.short, nil, f.help)
	case *int:
		flags.VarP(verbosity{into}, f.name, f.short, f.help)
	case *uint32:
		if f.name == "timeout" {
			flags.Uint32VarP(into, f.name, f.short, 0, f.help)
			return
		}
		flags.VarP(&size{most: math.MaxUint32, into: func(n int64) { *into = uint32(n) }}, f.name, f.short, f.help)
	default:
		panic("no kind of flag for " + f.name)
	}
}

// overrideCRIU puts what was given on the command line over the options that the dump had.
func overrideCRIU(flags *pflag.FlagSet, dumped, given *stasis.CRIUOptions) stasis.CRIUOptions {
	merged := *dumped
	// The two exclude each other, and closing what the dump has kept is what --tcp-close of a restore is for.
	if given.TCPClose {
		merged.TCPEstablished = false
	}
	if given.TCPEstablished {
		merged.TCPClose = false
	}
	for _, f := range criuFlags {
		if !flags.Changed(f.name) {
			continue
		}
		switch into := f.field(&merged).(type) {
		case *bool:
			*into = *f.field(given).(*bool)
		case *string:
			*into = *f.field(given).(*string)
		case *[]string:
			*into = slices.Clone(*into)
			for _, item := range *f.field(given).(*[]string) {
				if !slices.Contains(*into, item) {
					*into = append(*into, item)
				}
			}
		case *int:
			*into = *f.field(given).(*int)
		case *uint32:
			*into = *f.field(given).(*uint32)
		}
	}
	return merged
}

var inheritSpec = regexp.MustCompile(`^fd\[([0-9]+)\]:(.+)$`)

// inheritFDs takes up the descriptors of --inherit-fd, which are open in this process already. The caller closes the files.
func inheritFDs(specs []string) (files map[string]*os.File, err error) {
	files = make(map[string]*os.File)
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for _, spec := range specs {
		parts := inheritSpec.FindStringSubmatch(spec)
		if parts == nil {
			return files, badInput("--inherit-fd %q: write fd[N]:KEY, such as fd[3]:pipe:[12345]", spec)
		}
		if files[parts[2]] != nil {
			return files, badInput("--inherit-fd: %q is given twice", parts[2])
		}
		fd, err := strconv.Atoi(parts[1])
		if err != nil {
			return files, badInput("--inherit-fd %q: there is no such descriptor", spec)
		}
		// A copy, because a File closes its descriptor when nobody refers to it any more.
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return files, badInput("--inherit-fd %q: descriptor %d is not open here (%w): open it in the shell first, as in %d<FILE", spec, fd, err, fd)
		}
		files[parts[2]] = os.NewFile(uintptr(own), spec)
	}
	return files, nil
}

func closeAll(files map[string]*os.File) {
	for _, file := range files {
		file.Close()
	}
}
