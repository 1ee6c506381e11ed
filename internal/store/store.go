// Package store keeps the files of checkpoints: it writes them durably, publishes them by one atomic step, and reads them.
// What is in the files is the business of package image.
//
// # Words
//
// A checkpoint is a set of shards (img-0 … img-N-1) and one manifest. A [Target] is one checkpoint being written, a [Source] is
// one that is there. A checkpoint exists from the moment its manifest does; until then there is nothing to list, and whatever
// is left of an interrupted write (normally nothing: see [CreateFolder]) is not a checkpoint.
//
// There are two forms: a folder ([CreateFolder], [OpenFolder]) and one stream for pipes ([NewStream], [Receive]). A stream can't
// be read at random, so it is received into another target first.
//
// # Concurrency
//
// Create may be called from several goroutines; each Writer belongs to one goroutine at a time. Commit and Abort are called
// once, when no Writer is in use. A Source and its Files may be used from any number of goroutines.
//
// # Retry
//
// Nothing here tries again. A failed Write or Finish leaves the Target good for nothing but Abort.
package store

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	// ManifestName is the file whose existence makes a folder a checkpoint.
	ManifestName = "manifest.json"
	// RemovedName is what the manifest of a checkpoint is called that was removed, as long as others need blocks of it. A folder
	// with it is no checkpoint, and no free place for one either.
	RemovedName = "removed.json"

	// Magic begins every shard. CreateFolder tells by it the remains of an interrupted write from files that are not ours.
	Magic = "STASIS"

	// MaxManifest is the largest manifest that is written or read, in bytes.
	MaxManifest = 64 << 20

	// maxName bounds the names of shards, here and in streams.
	maxName = 64
)

// Errors of this package that callers act on.
var (
	// ErrNoCheckpoint says that a folder holds no manifest.
	ErrNoCheckpoint = errors.New("no checkpoint")
	// ErrExists says that a folder holds a checkpoint, or a file of the name of a shard, already.
	ErrExists = errors.New("already exists")
	// ErrBusy says that another process is writing into the folder.
	ErrBusy = errors.New("another dump is writing there")
	// ErrStream says that a stream is no checkpoint stream, or is damaged, or ended too early.
	ErrStream = errors.New("not a whole checkpoint stream")
)

// Writer writes one file of a checkpoint from front to back. It ends in Finish or Abort; after an error of Write or Finish only
// Abort is left.
type Writer interface {
	io.Writer
	// Finish makes everything written durable. The file is not published before Commit.
	Finish() error
	// Abort drops the file. It may be called at any time, also after Finish, and more than once.
	Abort() error
}

// Rereader is a Writer that can read what it wrote, from its Finish to the Target's Commit. What is published is checked by it
// first. A Writer into a pipe can't offer it.
type Rereader interface {
	io.ReaderAt
}

// Target is one checkpoint being written. It ends in Commit or Abort.
type Target interface {
	// Create starts the file of that name. It may be called from several goroutines.
	Create(name string) (Writer, error)
	// Commit publishes all files, each of which must be finished, and the manifest, by one atomic step: before it there is
	// no checkpoint, after it there is a durable one. When it fails, there is none, and Abort cleans up.
	Commit(manifest []byte) error
	// Abort removes everything that was written. After a Commit that succeeded it does nothing.
	Abort() error
}

// File is one file of a checkpoint, open for reading.
type File interface {
	io.ReaderAt
	io.Closer
	// Size in bytes, as it was when the file was opened.
	Size() int64
	// Fd is the file's descriptor, or ^uintptr(0) where it has none.
	Fd() uintptr
}

// Source is a checkpoint that is there to be read.
type Source interface {
	// Open opens the file of that name. Whoever opens it closes it. One that is not there is fs.ErrNotExist.
	Open(name string) (File, error)
	// Manifest returns the manifest as it was committed.
	Manifest() ([]byte, error)
	// Name tells people which checkpoint this is: a path or an address.
	Name() string
}

// checkName refuses names that could reach outside the folder or that mean something else there.
func checkName(name string) error {
	switch {
	case name == "", len(name) > maxName, name == ManifestName, name == RemovedName, strings.HasPrefix(name, "."), strings.HasSuffix(name, partial):
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }):
	default:
		return nil
	}
	return fmt.Errorf("%q is no name for a file of a checkpoint: use up to %d printable characters without a slash, not %s",
		name, maxName, ManifestName)
}

// checkManifest refuses what Manifest could not give back.
func checkManifest(m []byte) error {
	if len(m) == 0 || len(m) > MaxManifest {
		return fmt.Errorf("a manifest of %d bytes can't be stored: it must have 1 to %d", len(m), MaxManifest)
	}
	return nil
}
