package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/track"
)

// chainFlags are the flags of a dump that builds on another checkpoint.
type chainFlags struct {
	prevImagesDir string // relative to the folder of the new checkpoint, as CRIU has it
	parent        string // a path or a name, as everywhere else
	track         bool
	autoDedup     bool
	maxChain      int
	tracker       string
}

func (f *chainFlags) add(cmd *cobra.Command) {
	f.addParent(cmd)
	f.addTracker(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.track, "track-mem", false, "keep track of what is written afterwards, for a dump on top of this one")
	flags.BoolVar(&f.autoDedup, "auto-dedup", false, "give back the space of what the parent holds and this checkpoint replaces; the parent cannot be restored then")
	flags.IntVar(&f.maxChain, "max-chain", 0, "begin a new chain when this one would have more than `N` checkpoints (default: never)")
}

// addParent adds the flags that say what to build on.
func (f *chainFlags) addParent(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.parent, "parent", "", "write only what differs from this checkpoint or pre-dump: `DIR` or name")
	flags.StringVar(&f.prevImagesDir, "prev-images-dir", "", "the same as CRIU has it: a `DIR` relative to that of the new checkpoint, or absolute")
	must(cmd.RegisterFlagCompletionFunc("parent", completeParent))
}

// addTracker adds the flag that says how to track, for those who copy memory themselves.
func (f *chainFlags) addTracker(cmd *cobra.Command) {
	cmd.Flags().Var(oneOf{&f.tracker, track.Kinds()}, "tracker", "`HOW` writes are tracked: auto, userfaultfd, soft-dirty or none (default auto)")
	must(cmd.RegisterFlagCompletionFunc("tracker", cobra.FixedCompletions(track.Kinds(), cobra.ShellCompDirectiveNoFileComp)))
}

// completeParent leaves folders to the shell.
func completeParent(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// parentDir is the folder of the parent, or "". dir is that of the new checkpoint.
func (a *app) parentDir(f *chainFlags, dir string) (string, error) {
	switch {
	case f.parent != "" && f.prevImagesDir != "":
		return "", badInput("--parent and --prev-images-dir say the same: choose one")
	case f.prevImagesDir != "":
		if filepath.IsAbs(f.prevImagesDir) || dir == "" {
			return a.locate(f.prevImagesDir)
		}
		parent := filepath.Join(dir, f.prevImagesDir)
		if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
			return "", badInput("the parent: --prev-images-dir %s: there is no folder %s: a relative path begins at the folder of the new checkpoint, "+
				"as with CRIU (../NAME is one beside it); correct it, or use --parent", f.prevImagesDir, parent)
		}
		return a.locate(parent)
	case f.parent != "":
		return a.locate(f.parent)
	}
	return "", nil
}

// chain fills in the options of a dump. Where its checkpoint goes is in them already.
func (a *app) chain(f *chainFlags, o *stasis.DumpOptions) (err error) {
	if o.Parent, err = a.parentDir(f, o.Dir); err != nil {
		return err
	}
	switch {
	case f.maxChain < 0:
		return badInput("--max-chain %d: it must be at least 1", f.maxChain)
	case f.autoDedup && o.Parent == "":
		return badInput("--auto-dedup: there is nothing to give back without a parent; add --parent or --prev-images-dir")
	}
	o.Track, o.AutoDedup, o.MaxChain, o.Tracker = f.track, f.autoDedup, f.maxChain, f.tracker
	return nil
}
