package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"google.golang.org/protobuf/proto"
)

// Options are the per-dump and per-restore options of CRIU that a user of
// processes expects, with the names that criu(8) gives them. The zero value is
// CRIU's default for each.
type Options struct {
	ShellJob       bool `json:"shell_job,omitempty"`       // the tree's session leader is outside of it
	TCPEstablished bool `json:"tcp_established,omitempty"` // keep established TCP connections
	TCPClose       bool `json:"tcp_close,omitempty"`       // dump them as closed
	SkipInFlight   bool `json:"skip_in_flight,omitempty"`  // ignore connections still being made
	ExtUnixSk      bool `json:"ext_unix_sk,omitempty"`     // allow Unix sockets with a peer outside
	FileLocks      bool `json:"file_locks,omitempty"`      // dump file locks
	LinkRemap      bool `json:"link_remap,omitempty"`      // link files that lost their name back for a while

	GhostLimit uint32   `json:"ghost_limit,omitempty"` // largest deleted file to keep, in bytes
	External   []string `json:"external,omitempty"`    // resources that the restore gets from outside
	Root       string   `json:"root,omitempty"`        // root of the restored mount namespace
	JoinNS     []string `json:"join_ns,omitempty"`     // namespaces to join: "KIND:PID or file[:extra]"

	// ManageCgroups is CRIU's mode: "" (CRIU's own default), ignore, none,
	// props, soft, full, strict.
	ManageCgroups  string `json:"manage_cgroups,omitempty"`
	ActionScript   string `json:"-"`                         // run by CRIU at its own events
	Timeout        uint32 `json:"-"`                         // seconds to freeze within
	CPUCap         string `json:"cpu_cap,omitempty"`         // cpu, fpu, all, ins, none
	FileValidation string `json:"file_validation,omitempty"` // filesize or buildid
	NetworkLock    string `json:"network_lock,omitempty"`    // iptables, nftables or skip
	LogLevel       int    `json:"-"`                         // 0 to 4; 0 is CRIU's default

	// Raw are further lines of a CRIU configuration file, such as
	// "enable-external-masters" or "irmap-scan-path /srv".
	Raw []string `json:"raw,omitempty"`

	// InheritFDs maps CRIU's keys ("pipe:[123]", "tty[8801:1]") to descriptors
	// that the restored tree takes over. They stay open here.
	InheritFDs map[string]*os.File `json:"-"`
}

// Validate finds values that CRIU would refuse, with the ones it takes.
func (o *Options) Validate() error {
	if o.TCPEstablished && o.TCPClose {
		return fmt.Errorf("--tcp-established keeps connections and --tcp-close drops them: choose one")
	}
	if _, ok := cgroupModes[o.ManageCgroups]; !ok {
		return oneOf("--manage-cgroups", o.ManageCgroups, "ignore", "none", "props", "soft", "full", "strict")
	}
	if _, ok := networkLocks[o.NetworkLock]; !ok {
		return oneOf("--network-lock", o.NetworkLock, "iptables", "nftables", "skip")
	}
	if !slices.Contains([]string{"", "filesize", "buildid"}, o.FileValidation) {
		return oneOf("--file-validation", o.FileValidation, "filesize", "buildid")
	}
	for part := range strings.SplitSeq(o.CPUCap, ",") {
		if !slices.Contains([]string{"", "cpu", "fpu", "all", "ins", "none"}, part) {
			return oneOf("--cpu-cap", part, "cpu", "fpu", "all", "ins", "none")
		}
	}
	for _, ns := range o.JoinNS {
		if _, err := joinNS(ns); err != nil {
			return err
		}
	}
	for _, resource := range o.External {
		if !externalSpec.MatchString(resource) {
			return fmt.Errorf("--external %q: write KIND[KEY] or KIND[KEY]:NAME, such as mnt[/data]:data, tty[8801:1] or pipe:[4711]", resource)
		}
	}
	if o.LogLevel < 0 || o.LogLevel > 4 {
		return fmt.Errorf("--log-level %d: it goes from 0 to 4", o.LogLevel)
	}
	if o.ActionScript != "" {
		if _, err := os.Stat(o.ActionScript); err != nil {
			return fmt.Errorf("--action-script: %w: give the path of a program that can be run", err)
		}
	}
	return nil
}

// externalSpec is what CRIU understands by a resource from outside. What it does
// not understand it takes without a word, and leaves alone. Pipes and sockets are
// named as /proc/PID/fd shows them.
var externalSpec = regexp.MustCompile(`^([a-z]+\[.*\](:.*)?|(pipe|socket):\[\d+\])$`)

func oneOf(flag, value string, valid ...string) error {
	return fmt.Errorf("%s %q: it takes one of %s", flag, value, strings.Join(valid, ", "))
}

var cgroupModes = map[string]rpc.CriuCgMode{
	"": rpc.CriuCgMode_DEFAULT, "ignore": rpc.CriuCgMode_IGNORE, "none": rpc.CriuCgMode_CG_NONE,
	"props": rpc.CriuCgMode_PROPS, "soft": rpc.CriuCgMode_SOFT, "full": rpc.CriuCgMode_FULL,
	"strict": rpc.CriuCgMode_STRICT,
}

var networkLocks = map[string]rpc.CriuNetworkLockMethod{
	"":         rpc.CriuNetworkLockMethod_IPTABLES,
	"iptables": rpc.CriuNetworkLockMethod_IPTABLES,
	"nftables": rpc.CriuNetworkLockMethod_NFTABLES,
	"skip":     rpc.CriuNetworkLockMethod_SKIP,
}

// LocksWithIptables says whether CRIU locks the network by rules of iptables.
func (o *Options) LocksWithIptables() bool {
	return o.networkLock() == rpc.CriuNetworkLockMethod_IPTABLES
}

// networkLock chooses how connections are locked, unless the user has. With
// iptables CRIU runs a program for each connection; with nftables it needs some
// 14 ms of the freeze to unlock, even where there is no connection at all.
func (o *Options) networkLock() rpc.CriuNetworkLockMethod {
	if o.NetworkLock == "" && o.TCPEstablished {
		return rpc.CriuNetworkLockMethod_NFTABLES
	}
	return networkLocks[o.NetworkLock]
}

func joinNS(spec string) (*rpc.JoinNamespace, error) {
	parts := strings.SplitN(spec, ":", 3)
	if len(parts) < 2 || parts[0] == "" || parts[1] == "" {
		return nil, fmt.Errorf("--join-ns %q: write KIND:PID or KIND:FILE, such as net:/run/netns/blue", spec)
	}
	ns := &rpc.JoinNamespace{Ns: &parts[0], NsFile: &parts[1]}
	if len(parts) == 3 {
		ns.ExtraOpt = &parts[2]
	}
	return ns, nil
}

// Build turns the options into a request. Those for which the protocol has no
// field are written to a configuration file in the work folder.
func (o *Options) Build(workDir string) (*rpc.CriuOpts, []*os.File, error) {
	if err := o.Validate(); err != nil {
		return nil, nil, err
	}
	opts := &rpc.CriuOpts{
		ShellJob: &o.ShellJob, TcpEstablished: &o.TCPEstablished, TcpClose: &o.TCPClose,
		TcpSkipInFlight: &o.SkipInFlight, ExtUnixSk: &o.ExtUnixSk, FileLocks: &o.FileLocks,
		LinkRemap: &o.LinkRemap, External: o.External,
	}
	if o.GhostLimit > 0 {
		opts.GhostLimit = &o.GhostLimit
	}
	if o.Root != "" {
		opts.Root = &o.Root
	}
	if o.Timeout > 0 {
		opts.Timeout = &o.Timeout
	}
	if o.LogLevel > 0 {
		opts.LogLevel = proto.Int32(int32(o.LogLevel))
	}
	if o.ManageCgroups != "" {
		mode := cgroupModes[o.ManageCgroups]
		opts.ManageCgroupsMode = &mode
	}
	lock := o.networkLock()
	opts.NetworkLock = &lock
	for _, spec := range o.JoinNS {
		ns, err := joinNS(spec)
		if err != nil {
			return nil, nil, err
		}
		opts.JoinNs = append(opts.JoinNs, ns)
	}
	files := o.inherit(opts)
	return opts, files, o.writeConfig(opts, workDir)
}

func (o *Options) inherit(opts *rpc.CriuOpts) []*os.File {
	var files []*os.File
	for key, file := range o.InheritFDs {
		opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: &key, Fd: proto.Int32(int32(FD(len(files))))})
		files = append(files, file)
	}
	return files
}

// writeConfig writes what the protocol cannot say. The pass-through comes last
// and so has the last word.
func (o *Options) writeConfig(opts *rpc.CriuOpts, workDir string) error {
	var lines []string
	if o.ActionScript != "" {
		script, err := filepath.Abs(o.ActionScript)
		if err != nil {
			return fmt.Errorf("--action-script: %w", err)
		}
		lines = append(lines, "action-script "+script)
	}
	for part := range strings.SplitSeq(o.CPUCap, ",") {
		if part != "" {
			lines = append(lines, "cpu-cap "+part)
		}
	}
	if o.FileValidation != "" {
		lines = append(lines, "file-validation "+o.FileValidation)
	}
	lines = append(lines, o.Raw...)
	return addConfig(opts, workDir, lines...)
}

// addConfig adds lines to the configuration file of a request.
func addConfig(opts *rpc.CriuOpts, workDir string, lines ...string) error {
	if len(lines) == 0 {
		return nil
	}
	path := filepath.Join(workDir, "options.conf")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = file.WriteString(strings.Join(lines, "\n") + "\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("write CRIU's configuration: %w", err)
	}
	opts.ConfigFile = &path
	return nil
}
