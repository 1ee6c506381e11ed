package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/pageserver"
	"stasis/internal/store"
)

// receivePages takes the memory of one sender.
func (a *app) receivePages(ctx context.Context, f *pageServerFlags, server pageserver.ServerOptions) error {
	o := pageserver.ReceiveOptions{ServerOptions: server, Stasis: stasis.Version, Name: filepath.Base(f.dir)}
	var w writer.Options
	if err := a.writerOptions(f, &w); err != nil {
		return err
	}
	if err := checkParent(f.dir); err != nil {
		return err
	}
	parent, err := a.openParent(ctx, f)
	if err != nil {
		return err
	}
	defer parent.close() //nolint:errcheck // it was only read
	if parent.checkpoint == nil && f.chain.autoDedup {
		return badInput("--auto-dedup: there is nothing to give back without a parent; add --parent or --prev-images-dir")
	}
	o.Parent, o.Announce = parent.checkpoint, f.chain.parent == ""
	w.Parent, w.ParentPath = parent.checkpoint, parent.path
	target, err := store.CreateFolder(f.dir)
	if err != nil {
		return err
	}
	if o.Writer, err = writer.New(parent.lock.Noting(target, f.dir), w); err != nil {
		return err
	}
	l, err := a.listen(f, server.TLS != nil)
	if err != nil {
		return errors.Join(err, o.Writer.Abort())
	}
	begun := time.Now()
	got, err := pageserver.Receive(ctx, l, o)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	freed, err := f.dedup(parent)
	if err != nil { // the checkpoint is there, whatever comes of this
		fmt.Fprintf(a.err, "stasis: warning: the space of the parent is not given back (%v): run stasis dedup %s\n", err, f.dir)
	}
	if err := a.tellReceived(f, got, freed, took); err != nil {
		return err
	}
	if got.Unheard != nil {
		return fmt.Errorf("the memory is in %s, but %s was gone before it was told, so its dump has failed: %w", f.dir, got.Peer, got.Unheard)
	}
	return nil
}

// heldParent is what a checkpoint builds on: open, and held so that nobody removes it meanwhile.
type heldParent struct {
	checkpoint *reader.Checkpoint // nil: there is none
	path       string             // as seen from the new checkpoint
	lock       *chain.Lock
}

// close lets go of it. It may be called of nothing, and again.
func (p *heldParent) close() error {
	if p.lock == nil {
		return nil
	}
	err := errors.Join(p.checkpoint.Close(), p.lock.Unlock())
	p.checkpoint, p.lock = nil, nil
	return err
}

// openParent opens what the checkpoint builds on. Without a flag it is what the link "parent" in the folder leads to, as CRIU has
// it.
func (a *app) openParent(ctx context.Context, f *pageServerFlags) (*heldParent, error) {
	dir, err := a.parentDir(&f.chain, f.dir)
	if err != nil {
		return nil, err
	}
	if link := filepath.Join(f.dir, "parent"); dir == "" {
		if _, err := os.Lstat(link); err != nil {
			return &heldParent{}, nil //nolint:nilerr // there is no link, or the folder is made later
		}
		if dir, err = filepath.EvalSymlinks(link); err != nil {
			return nil, badInput("the link to the parent: %w", err)
		}
	}
	lock, err := chain.LockShared(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("the parent: %w", err)
	}
	checkpoint, err := lock.Open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the parent: %w", err), lock.Unlock())
	}
	return &heldParent{checkpoint, relativeTo(f.dir, dir), lock}, nil
}

// relativeTo is the path from one folder to another where there is one, as manifests name it.
func relativeTo(from, to string) string {
	absFrom, err1 := filepath.Abs(from)
	absTo, err2 := filepath.Abs(to)
	if errors.Join(err1, err2) != nil {
		return to
	}
	if path, err := filepath.Rel(absFrom, absTo); err == nil {
		return path
	}
	return absTo
}

// dedup gives back what the parent does not need to hold any more, where that is wanted, and returns how many bytes that was.
func (f *pageServerFlags) dedup(parent *heldParent) (int64, error) {
	if !f.chain.autoDedup {
		return 0, nil
	}
	if err := parent.close(); err != nil {
		return 0, err
	}
	report, err := chain.AutoDedup(context.Background(), f.dir)
	if err != nil {
		return 0, err
	}
	return report.Freed, nil
}

// writerOptions sets how the checkpoint is written.
func (a *app) writerOptions(f *pageServerFlags, w *writer.Options) error {
	how, err := f.write.settle(f.given, &a.config.Checkpoint)
	if err != nil {
		return err
	}
	w.Shards, w.Codec = how.shards(), how.codec
	_, err = rand.Read(w.ID[:])
	return err
}

// receivedReport is the result for programs.
type receivedReport struct {
	ID          string        `json:"id"`
	Dir         string        `json:"dir"`
	Parent      string        `json:"parent,omitempty"`
	Peer        string        `json:"peer"`
	Processes   int           `json:"processes"`
	Segments    int           `json:"segments"` // of shared memory
	Pages       int64         `json:"pages"`    // that were sent
	Holes       int64         `json:"holes"`    // pages that are in the parent, by the sender's word
	Compression string        `json:"compression"`
	Streams     int           `json:"streams"`
	TookUS      int64         `json:"took_us"` // with the wait for the sender
	Figures     image.Figures `json:"figures"`
	Freed       int64         `json:"bytes_freed"` // bytes of disk that --auto-dedup gave back
	Notes       []string      `json:"notes,omitempty"`
}

func (a *app) tellReceived(f *pageServerFlags, got *pageserver.Received, freed int64, took time.Duration) error {
	m := got.Manifest
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		dir = f.dir
	}
	r := receivedReport{
		ID: m.ID, Dir: dir, Parent: m.Parent, Peer: got.Peer, Processes: len(m.Processes), Segments: got.Segments, Pages: got.Pages,
		Holes: got.Holes, Compression: m.Codec, Streams: len(m.Shards), TookUS: took.Microseconds(), Figures: m.Figures,
		Freed: freed, Notes: got.Notes,
	}
	if a.output == outputJSON {
		return a.writeJSON(r)
	}
	if a.quiet {
		return nil
	}
	for _, note := range r.Notes {
		fmt.Fprintln(a.err, "note: "+note)
	}
	what := plural(r.Processes, "process")
	if r.Processes != 1 {
		what = fmt.Sprintf("%d processes", r.Processes)
	}
	if r.Segments > 0 {
		what += " and " + plural(r.Segments, "segment") + " of shared memory"
	}
	parent := ""
	if r.Holes > 0 {
		parent = fmt.Sprintf(", %s of the parent", plural(int(r.Holes), "page"))
	}
	given := ""
	if r.Freed > 0 {
		given = "; " + inBytes(r.Freed) + " of ancestors given back"
	}
	g := m.Figures
	sent := r.Pages * image.PageSize
	sending := micros(g.DumpUS)
	_, err = fmt.Fprintf(a.results, "received the memory of %s from %s to %s: %s (%s)%s, stored in %s (%s, %s), in %s (%s)%s\n",
		what, r.Peer, r.Dir, plural(int(r.Pages), "page"), inBytes(sent), parent, inBytes(g.BytesStored), r.Compression,
		plural(r.Streams, "stream"), span(sending), rate(sent, sending), given)
	return err
}
