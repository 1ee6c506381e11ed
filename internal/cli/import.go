package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/convert"
	"stasis/internal/image"
	"stasis/internal/store"
)

// importFlags are the flags of an import.
type importFlags struct {
	dir, name  string
	write      writeFlags
	allowHoles bool
	given      func(flag string) bool
}

func (a *app) importCommand() *cobra.Command {
	f := &importFlags{}
	cmd := &cobra.Command{
		Use:   "import CRIUDIR",
		Short: "Make a checkpoint of what CRIU, a container engine or a stream holds",
		Long: `Makes a checkpoint of a dump by CRIU, which then restores with this engine, lazily too. CRIUDIR is

  the folder that "criu dump" wrote. Memory that is in earlier folders (pre-dumps, --prev-images-dir) is found by the links called
  parent; memory that went to a page server has to be in the folder with the rest, as CRIU's server or "stasis page-server" wrote it;

  or an archive of a container engine (podman container checkpoint --export, kubelet, CRI-O, containerd): tar, alone or with gzip or
  Zstandard. The processes are imported, and the description of the container is kept with them. The files that the container
  changed are not: a restore needs its root file system (--root) as it was;

  or the stream that "stasis dump process PID --dir -" wrote, in a file or, where CRIUDIR is -, on standard input. It becomes the
  checkpoint that it is, for a later restore on this machine.

The checkpoint goes to a folder (--dir) or by name into the default folder (--name, and where neither is given, under a name made
of the command and the time). It is complete in itself: CRIUDIR is not changed, and not needed any more. CRIU's images do not tell
everything about the machine of the dump; what is not known is said, and a restore cannot compare it.`,
		Example: `  stasis import /srv/images --name web
  stasis import web-checkpoint.tar.zst --dir /srv/web --compression zstd
  stasis dump process 4711 --dir - | ssh host stasis import - --name job`,
		Args: oneArg("the folder or archive"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.runImport(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.dir, "dir", "D", "", "`DIR` for the checkpoint, made where its parent exists")
	flags.StringVar(&f.name, "name", "", "`NAME` of the checkpoint in the default folder")
	f.write.addConfigured(cmd)
	flags.BoolVar(&f.allowHoles, "allow-holes", false, "take holes in CRIU's files for zeros: for files that were copied sparsely, and never for ones that were deduplicated")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// importOptions turns flags and configuration into what an import takes. Where the checkpoint goes is not part of it.
func (a *app) importOptions(f *importFlags) (convert.ImportOptions, error) {
	how, err := f.write.settle(f.given, &a.config.Checkpoint)
	return convert.ImportOptions{
		Stasis: stasis.Version, Shards: how.shards(), Codec: how.codec, Workers: runtime.NumCPU(), AllowHoles: f.allowHoles,
	}, err
}

// importReport is the result for programs.
type importReport struct {
	ID             string        `json:"id"`
	Name           string        `json:"name"`
	Dir            string        `json:"dir"`
	PID            int           `json:"pid"` // of the root
	Command        string        `json:"command"`
	Processes      int           `json:"processes"`
	Folders        int           `json:"folders"`         // of CRIU, that memory came from
	BytesWithCRIU  int64         `json:"bytes_with_criu"` // memory that stays in CRIU's images
	Compression    string        `json:"compression"`
	Streams        int           `json:"streams"`
	TookUS         int64         `json:"took_us"`
	BytesPerSecond int64         `json:"bytes_per_second"`
	Notes          []string      `json:"notes,omitempty"`
	Figures        image.Figures `json:"figures"`

	stream bool // it was a checkpoint already
}

func (a *app) runImport(ctx context.Context, from string, f *importFlags) error {
	if f.dir != "" && f.name != "" {
		return badInput("--dir and --name both say where the checkpoint goes: choose one")
	}
	if from == standardStream {
		return a.importStream(ctx, a.in, f)
	}
	if _, err := os.Stat(from); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return badInput("there is no %s: give the folder with CRIU's images, an archive of a container engine, or - for a stream", from)
		}
		return badInput("%w: give the folder with CRIU's images, an archive of a container engine, or - for a stream", err)
	}
	if hasManifest(from) && !hasImages(from) {
		return badInput("%s is a checkpoint of Stasis already, or memory that a page server took without CRIU's other images: restore it as it is "+
			"(stasis restore process --path %[1]s), or copy those images to it first", from)
	}
	if stream := openStream(from); stream != nil {
		defer stream.Close()
		return a.importStream(ctx, stream, f)
	}
	if below := filepath.Join(from, "checkpoint"); !hasImages(from) && hasImages(below) {
		return badInput("%s is the unpacked archive of a container engine: its images are in %s, give that, or the archive itself", from, below)
	}
	options, err := a.importOptions(f)
	if err != nil {
		return err
	}
	var where place
	options.Name = f.name
	options.Target = func(command string) (store.Target, error) {
		if f.dir == "" && f.name == "" {
			f.name = a.newNameOf(command)
		}
		var err error
		if where, err = a.placeOf(0, f.dir, f.name); err != nil {
			return nil, err
		}
		return store.CreateFolder(where.dir)
	}
	view := a.progress()
	defer view.Close()
	options.Progress = func(done, total int64) { view.show("importing", done, total) }
	begun := time.Now()
	result, err := convert.Import(ctx, from, options)
	took := time.Since(begun)
	view.Close()
	if errors.Is(err, convert.ErrImages) {
		return &inputError{err: err}
	}
	if err != nil {
		return err
	}
	m := result.Manifest
	report := importReport{
		ID: m.ID, Name: m.Name, Dir: where.dir, PID: m.RootPID, Command: commandOf(m), Processes: len(m.Processes), Folders: result.Layers,
		BytesWithCRIU: result.Kept, Compression: m.Codec, Streams: len(m.Shards), TookUS: took.Microseconds(),
		BytesPerSecond: perSecond(m.Figures.BytesMemory+result.Kept, took), Notes: result.Notes, Figures: m.Figures,
	}
	return a.showImport(&report)
}

// showImport tells what was imported.
func (a *app) showImport(report *importReport) error {
	if abs, err := filepath.Abs(report.Dir); err == nil {
		report.Dir = abs
	}
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		for _, note := range report.Notes {
			fmt.Fprintf(a.err, "note: %s\n", printable(note))
		}
		fmt.Fprintln(a.out, report.sentence())
	}
	return nil
}

// sentence says it all in one line.
func (r *importReport) sentence() string {
	g, processes := r.Figures, "1 process"
	if r.Processes > 1 {
		processes = fmt.Sprintf("%d processes", r.Processes)
	}
	if r.stream {
		return fmt.Sprintf("imported %s (%d, %s) to %s: %s of memory in %s (%s, %s), in %s", printable(r.Command), r.PID, processes, r.Dir,
			inBytes(g.BytesMemory), inBytes(g.BytesStored), r.Compression, plural(r.Streams, "stream"), span(micros(r.TookUS)))
	}
	return fmt.Sprintf("imported %s (%d, %s) to %s: %s of memory and %s that stay with CRIU, in %s (%s, %s), in %s (%s)",
		printable(r.Command), r.PID, processes, r.Dir, inBytes(g.BytesMemory), inBytes(r.BytesWithCRIU),
		inBytes(g.BytesStored), r.Compression, plural(r.Streams, "stream"), span(micros(r.TookUS)), rate(g.BytesMemory+r.BytesWithCRIU, micros(r.TookUS)))
}
