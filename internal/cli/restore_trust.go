package cli

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"stasis/internal/engine"
	"stasis/internal/trust"
)

// trusted refuses to restore, as root, what somebody else could have written: a restore gives processes whatever identity and open
// files stand in the checkpoint. What comes through standard input was handed over by whoever runs this, but its ancestors
// are folders like others.
//
// Who became root by sudo(8) may write checkpoints himself: he could give the flag as well.
func (a *app) trusted(f *restoreFlags, dir string) error {
	received := f.path == standardStream
	if f.trust || os.Geteuid() != 0 || !received && !hasManifest(dir) { // without a manifest the restore says what is wrong
		return nil
	}
	_, err := engine.TrustedWith(engine.Trust{Users: a.sudoUser(), Near: f.near, Received: received}, dir)
	if not := (*trust.Error)(nil); errors.As(err, &not) {
		return badInput("%s %s. A restore as root gives processes the identity and the files that stand in the checkpoint, so whoever can "+
			"write it decides: if you trust them, say --trust; else copy a checkpoint that you know to be good to a folder that is root's alone", not.Path, not.Why)
	}
	return err //nolint:wrapcheck // it says all there is to say
}

// sudoUser is who became root by sudo(8) to run this.
func (a *app) sudoUser() []uint32 {
	for _, variable := range a.environ {
		if value, ok := strings.CutPrefix(variable, "SUDO_UID="); ok {
			if uid, err := strconv.ParseUint(value, 10, 32); err == nil {
				return []uint32{uint32(uid)}
			}
		}
	}
	return nil
}
