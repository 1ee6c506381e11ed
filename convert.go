package stasis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"stasis/internal/codec"
	"stasis/internal/convert"
	"stasis/internal/image"
	"stasis/internal/store"
)

// ExportOptions says what to export and where. Dir and Out are needed.
type ExportOptions struct {
	Dir  string   // folder of the checkpoint; any of a chain
	Near []string // as for a restore
	// Out is the folder for CRIU's images. It is made where its parent exists;
	// if it is there, it has to be empty.
	Out string
	// Chain writes a folder for each checkpoint of the chain, from the oldest to
	// Dir: Out/1, Out/2, …, with links called parent and without the pages that
	// are the same in the one before, as CRIU makes them.
	Chain bool

	Progress func(Progress) // as for a dump; Done and Total are bytes that are written
}

// ExportResult tells what an export wrote.
type ExportResult struct {
	Out     string           `json:"out"`             // absolute
	Folders []ExportedFolder `json:"folders"`         // oldest first; the last is that of the checkpoint itself
	Command []string         `json:"command"`         // that restores it: "criu restore …", with the options that it needs
	Bytes   int64            `json:"bytes"`           // of all images
	Notes   []string         `json:"notes,omitempty"` // what went another way than was asked for
	Took    time.Duration    `json:"-"`
}

// ExportedFolder is one folder of CRIU's images.
type ExportedFolder struct {
	Dir         string `json:"dir"`
	ID          string `json:"id"`              // of the checkpoint
	Kind        string `json:"kind"`            // KindPreDump has memory only: criu cannot restore it
	Pages       int64  `json:"pages"`           // whose content is in the folder
	ParentPages int64  `json:"pages_inherited"` // whose content is in the folder of the parent
}

// Export writes a checkpoint as a folder that stock CRIU restores without
// Stasis. Out gets its name when all of it is written and on the disk; when
// Export fails, nothing is left. The checkpoint stays as it is. No privilege is
// needed but to read and to write the files.
//
// The error wraps ErrInput where there is no checkpoint, or it is a pre-dump, or
// Out is in use, and ErrDamaged where the checkpoint is damaged or incomplete.
func Export(ctx context.Context, opts ExportOptions) (*ExportResult, error) {
	begun := time.Now()
	if opts.Out == "" {
		return nil, ofKind(ErrInput, errors.New("export: no folder for CRIU's images (Out)"))
	}
	line, err := convert.OpenLine(ctx, opts.Dir, opts.Chain, opts.Near...)
	if err != nil {
		return nil, ofKind(kindOfFinding(err), err)
	}
	defer line.Close()
	if m := line.Checkpoints[len(line.Checkpoints)-1].Manifest(); m.Kind == image.KindPreDump {
		return nil, ofKind(ErrInput, fmt.Errorf("export: %s is a pre-dump, which has memory only: export a dump that was made on top of it", m.Name))
	}
	meter := meter{step: StepExport, tell: opts.Progress}
	made, err := convert.Export(ctx, line.Checkpoints, opts.Out, convert.ExportOptions{
		Workers: runtime.NumCPU(), Chain: opts.Chain, Progress: meter.show,
	})
	if err != nil {
		return nil, ofKind(kindOfConverting(err), err)
	}
	result := &ExportResult{Out: made.Out, Command: made.Command, Bytes: made.Bytes, Took: time.Since(begun)}
	for _, f := range made.Folders {
		result.Folders = append(result.Folders, ExportedFolder(f))
	}
	if line.Note != "" {
		result.Notes = []string{line.Note}
	}
	return result, nil
}

// ImportOptions says what to import and where. Path and Dir are needed;
// everything else has a default.
type ImportOptions struct {
	// Path is a folder that CRIU wrote (a dump, with the earlier folders that its
	// links called parent lead to), or an archive of a container engine: tar,
	// alone or with gzip or Zstandard.
	Path string
	Dir  string // folder of the checkpoint; made if its parent exists
	Name string // for people; default: the command and the time of the dump

	Streams     int    // number of shards; 0: one for each CPU
	Compression string // none, lz4, zstd, gzip or zlib; "": DefaultCompression
	Level       int    // of the codec; 0: its default

	// AllowHoles takes holes in CRIU's files for zeros: for files that were
	// copied sparsely, and never for ones that were deduplicated.
	AllowHoles bool

	Progress func(Progress) // as for a dump; Done and Total are bytes of memory
}

// ImportResult tells what an import made. Sizes are in bytes.
type ImportResult struct {
	Dir           string // absolute
	Manifest      *Manifest
	Folders       int      // of CRIU, that memory came from
	BytesWithCRIU int64    // memory that stays in CRIU's images
	Notes         []string // what is not known, or will not be restored
	Took          time.Duration
}

// Import makes a checkpoint of what CRIU or a container engine wrote, which then
// restores as any other. It is complete in itself: Path is not changed, and not
// needed any more. When Import fails there is no checkpoint. No privilege is
// needed but to read and to write the files.
//
// Images are not trusted while they are read, but a restore gives processes
// what stands in them: import only what comes from somebody who may become root.
//
// The error wraps ErrInput where Path is not a whole dump, or Dir is in use.
func Import(ctx context.Context, opts ImportOptions) (*ImportResult, error) {
	begun := time.Now()
	if opts.Dir == "" || opts.Path == "" {
		return nil, ofKind(ErrInput, errors.New("import: say what to import (Path) and the folder of the checkpoint (Dir)"))
	}
	setDefault(&opts.Compression, DefaultCompression)
	setDefault(&opts.Streams, min(runtime.NumCPU(), image.MaxShards))
	if opts.Streams < 0 || opts.Streams > image.MaxShards {
		return nil, ofKind(ErrInput, fmt.Errorf("import: %d streams: it is a number from 1 to %d", opts.Streams, image.MaxShards))
	}
	compressor, err := codec.New(opts.Compression, opts.Level)
	if err != nil {
		return nil, ofKind(ErrInput, err)
	}
	meter := meter{step: StepImport, tell: opts.Progress}
	made, err := convert.Import(ctx, opts.Path, convert.ImportOptions{
		Target: func(string) (store.Target, error) { return store.CreateFolder(opts.Dir) },
		Name:   opts.Name, Stasis: Version, Shards: opts.Streams, Codec: compressor, Workers: runtime.NumCPU(),
		AllowHoles: opts.AllowHoles, Progress: meter.show,
	})
	if err != nil {
		return nil, ofKind(kindOfConverting(err), err)
	}
	result := &ImportResult{
		Dir: opts.Dir, Manifest: made.Manifest, Folders: made.Layers, BytesWithCRIU: made.Kept, Notes: made.Notes, Took: time.Since(begun),
	}
	if dir, err := filepath.Abs(opts.Dir); err == nil {
		result.Dir = dir
	}
	return result, nil
}

// kindOfConverting tells bad input from damage and from what else may happen.
func kindOfConverting(err error) error {
	switch {
	case errors.Is(err, convert.ErrImages), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrBusy):
		return ErrInput
	}
	return kindOfReading(err)
}
