package stasis

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"stasis/internal/capture"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/proc"
)

var _ = capture.Eligible

func thisHost(c *criu.Binary) (image.Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return image.Host{}, fmt.Errorf("uname: %w", err)
	}
	text := func(raw []byte) string { return unix.ByteSliceToString(raw) }
	return image.Host{
		Hostname: text(u.Nodename[:]), Kernel: text(u.Release[:]), Arch: text(u.Machine[:]),
		CRIUVersion: c.VersionString(),
	}, nil
}

func summarize(tree []*proc.Task) ([]image.Process, error) {
	var list []image.Process
	for _, t := range tree {
		list = append(list, image.Process{
			PID: t.NSPID, PPID: t.PPID, Comm: t.Comm, Exe: t.Exe, Cmdline: t.Cmdline,
			State: string(t.State), Threads: t.Threads,
		})
	}
	return list, nil
}

// optionsOfCRIU is the key in the manifest's options for CRIU's own.
const optionsOfCRIU = "criu"

// restoreOptions are the options of a dump that its restore has to know.
func restoreOptions(o *DumpOptions) map[string]string {
	raw, err := json.Marshal(&o.CRIU)
	if err != nil {
		return nil
	}
	return map[string]string{optionsOfCRIU: string(raw)}
}
