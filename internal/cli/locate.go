package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"

	"stasis/internal/proc"
	"stasis/internal/store"
)

// standardStream is the folder's name that means standard output or input.
const standardStream = "-"

// locate finds the folder of a checkpoint, which is given as a path or as the name of one in the default folder. A path comes
// first where both are there.
func (a *app) locate(arg string) (string, error) {
	if arg == "" {
		return "", badInput("the checkpoint's name is empty: give a folder, or the name of a checkpoint in %s", a.config.Checkpoint.Dir)
	}
	if hasManifest(arg) {
		return arg, nil
	}
	if err := notOurs(arg); err != nil {
		return "", err
	}
	if !isName(arg) {
		return arg, nil
	}
	if named := filepath.Join(a.config.Checkpoint.Dir, arg); hasManifest(named) {
		return named, nil
	} else if _, err := os.Stat(filepath.Join(named, store.RemovedName)); err == nil {
		return named, nil // whoever opens it says so
	}
	if dir := a.checkpointOfJob(arg); dir != "" {
		return dir, nil
	}
	if _, err := os.Stat(arg); err == nil {
		return arg, nil // what is wrong with that folder is said when it is opened
	}
	text := fmt.Sprintf("there is no checkpoint %s: no such folder here, and none of that name in %s", arg, a.config.Checkpoint.Dir)
	if _, err := os.Stat(filepath.Join(a.config.Checkpoint.Dir, "jobs", arg)); err == nil {
		text += fmt.Sprintf(": %s is a job, and \"stasis checkpoints --job %[1]s\" lists its checkpoints", arg)
	} else if near := nearestName(arg, a.checkpointNames()); near != "" {
		text += ": did you mean " + near + "?"
	}
	return "", badInput("%s", text)
}

// notOurs says what to do with what can become a checkpoint and is none.
func notOurs(arg string) error {
	if arg == standardStream {
		return badInput("- is a stream, which can be restored (stasis restore process --path -) or made a checkpoint of (stasis import - --name NAME), and nothing else")
	}
	if hasImages(arg) {
		return badInput("%s holds CRIU's own images: make a checkpoint of them by stasis import %[1]s", arg)
	}
	if stream := openStream(arg); stream != nil {
		stream.Close()
		return badInput("%s is a checkpoint as one stream: restore it by stasis restore process --path - <%[1]s, or make a checkpoint of it by stasis import %[1]s", arg)
	}
	return nil
}

// checkpointOfJob is the folder of a checkpoint of a job of root's that is given as events and dumps name it, JOB-NUMBER; else "".
func (a *app) checkpointOfJob(arg string) string {
	cut := strings.LastIndexByte(arg, '-')
	if cut <= 0 {
		return ""
	}
	seq, err := strconv.ParseUint(arg[cut+1:], 10, 64)
	if err != nil {
		return ""
	}
	dir := filepath.Join(a.config.Checkpoint.Dir, "jobs", arg[:cut], fmt.Sprintf("%06d", seq))
	if !hasManifest(dir) {
		return ""
	}
	return dir
}

func hasManifest(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, store.ManifestName))
	return err == nil
}

// checkpointNames lists the checkpoints in the default folder.
func (a *app) checkpointNames() []string {
	entries, err := os.ReadDir(a.config.Checkpoint.Dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && hasManifest(filepath.Join(a.config.Checkpoint.Dir, e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names
}

func nearestName(name string, list []string) string {
	best, least := "", len(name)/2+1
	for _, candidate := range list {
		if distance := levenshtein.ComputeDistance(name, candidate); distance < least {
			best, least = candidate, distance
		}
	}
	return best
}

// completeCheckpoint completes the names of checkpoints; folders are left to the shell.
func (a *app) completeCheckpoint(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.config == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.checkpointNames(), cobra.ShellCompDirectiveDefault
}

// completePID completes process ids, with the commands as their explanation.
func completePID(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var list []string
	for _, e := range entries {
		pid, err := parsePID(e.Name())
		if err != nil {
			continue
		}
		if task, err := proc.ReadTask(pid); err == nil && task.Exe != "" {
			list = append(list, fmt.Sprintf("%d\t%s", pid, task.Comm))
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@+=-]{0,127}$`)

// isName says whether an argument can be a name and not a path alone.
func isName(arg string) bool {
	return !strings.ContainsRune(arg, filepath.Separator) && arg != "." && arg != ".."
}

// checkName refuses names that would be awkward as a folder's.
func checkName(name string) error {
	if validName.MatchString(name) {
		return nil
	}
	return badInput("--name %q: use up to 128 letters, digits and _ . @ + = -, without a slash and not beginning with . or -; a path goes to --dir", name)
}

// place is where a dump goes.
type place struct {
	dir  string
	name string // for people; "": the library's choice
}

// placeOf decides where the checkpoint of a process goes. A folder has precedence over a name; a dump with neither gets a name.
func (a *app) placeOf(pid int, dir, name string) (place, error) {
	switch {
	case dir != "":
		return place{dir: dir, name: name}, checkParent(dir)
	case name == "":
		name = a.newName(pid)
	default:
		if err := checkName(name); err != nil {
			return place{}, err
		}
	}
	parent := a.config.Checkpoint.Dir
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return place{}, badInput("make the default folder for checkpoints: %w: choose another folder by --dir, or set checkpoint.dir in the configuration", err)
	}
	return place{dir: filepath.Join(parent, name), name: name}, nil
}

// checkParent says early what a dump to that folder would fail with.
func checkParent(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		return badInput("the folder %s is not there: make it first, or choose another for %s", parent, dir)
	} else if err != nil {
		return badInput("%w", err)
	}
	return nil
}

// newName makes a name of the command and the time, with a number where that is taken.
func (a *app) newName(pid int) string {
	if task, err := proc.ReadTask(pid); err == nil {
		return a.newNameOf(task.Comm)
	}
	return a.newNameOf("process")
}

func (a *app) newNameOf(comm string) string {
	base := fmt.Sprintf("%s-%s", tidy(comm), time.Now().UTC().Format("20060102T150405"))
	taken := a.checkpointNames()
	name := base
	for n := 2; slices.Contains(taken, name); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name
}

var untidy = regexp.MustCompile(`[^A-Za-z0-9_.]+`)

// tidy makes a command fit for a name.
func tidy(comm string) string {
	if comm = strings.Trim(untidy.ReplaceAllString(comm, "-"), "-."); comm == "" {
		return "process"
	}
	return comm
}
