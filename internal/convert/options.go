package convert

import (
	"encoding/json"
	"strings"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// optionsKey is the key in a manifest's options for CRIU's own.
const optionsKey = "criu"

// restoreFlags are the flags that "criu restore" needs for a checkpoint, as it was dumped.
func restoreFlags(m *image.Manifest) []string {
	var o criu.Options
	if json.Unmarshal([]byte(m.Options[optionsKey]), &o) != nil {
		return nil
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		flag string
	}{
		{o.ShellJob, "--shell-job"},
		{o.TCPEstablished, "--tcp-established"},
		{o.TCPClose, "--tcp-close"},
		{o.ExtUnixSk, "--ext-unix-sk"},
		{o.FileLocks, "--file-locks"},
	} {
		if f.on {
			flags = append(flags, f.flag)
		}
	}
	add := func(flag, value string) {
		if value != "" {
			flags = append(flags, flag, value)
		}
	}
	for _, e := range o.External {
		add("--external", e)
	}
	add("--root", o.Root)
	for _, ns := range o.JoinNS {
		add("--join-ns", ns)
	}
	if o.ManageCgroups != "" {
		flags = append(flags, "--manage-cgroups="+o.ManageCgroups)
	}
	add("--cpu-cap", o.CPUCap)
	add("--file-validation", o.FileValidation)
	for _, line := range o.Raw {
		key, value, _ := strings.Cut(line, " ")
		flags = append(flags, "--"+key)
		if value != "" {
			flags = append(flags, strings.TrimSpace(value))
		}
	}
	return flags
}
