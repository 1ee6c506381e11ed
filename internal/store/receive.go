package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Receive unpacks a stream that NewStream made into t. t is committed if the stream was whole, up to its end mark, and else
// aborted; the error then wraps ErrStream, unless it is t's own. r is read to the end mark and not beyond.
func Receive(r io.Reader, t Target) error {
	in := receiver{frames: frameReader{r: r}, t: t}
	err := in.run()
	if err != nil {
		// Abort is still owed after a Commit that failed.
		return errors.Join(err, t.Abort())
	}
	return nil
}

type receiver struct {
	frames   frameReader
	t        Target
	files    []*received
	manifest []byte
}

type received struct {
	Writer
	name     string
	complete bool
}

func (in *receiver) run() error {
	first, err := in.frames.next()
	if err != nil {
		return err
	}
	if first.kind != frameStart || len(first.data) != 4 {
		return in.frames.bad("it is not in the form that Stasis writes", nil)
	}
	if v := binary.LittleEndian.Uint32(first.data); v != frameVersion {
		return fmt.Errorf("%w: it is of version %d and this Stasis reads version %d: use a newer Stasis on this side", ErrStream, v, frameVersion)
	}
	for {
		f, err := in.frames.next()
		if err != nil {
			return err
		}
		if f.kind == frameEnd {
			return in.finish()
		}
		if err := in.take(f); err != nil {
			return err
		}
	}
}

// take does what one frame between start and end says.
func (in *receiver) take(f frame) error {
	if in.manifest != nil && f.kind != frameAbort {
		return in.frames.bad("something follows its manifest", nil)
	}
	switch f.kind {
	case frameBegin:
		return in.begin(f)
	case frameFile, frameFinish:
		if int(f.file) >= len(in.files) || in.files[f.file].complete {
			return in.frames.bad("it is damaged: bytes of a file that is not open", nil)
		}
		file := in.files[f.file]
		if f.kind == frameFinish {
			file.complete = true
			return nil
		}
		_, err := file.Write(f.data)
		return err
	case frameManifest:
		if len(f.data) == 0 {
			return in.frames.bad("it is damaged: its manifest is empty", nil)
		}
		in.manifest = append([]byte(nil), f.data...)
		return nil
	case frameAbort:
		return in.frames.bad("the sending side gave up", nil)
	}
	return in.frames.bad("it is damaged: a part is of no known kind", nil)
}

func (in *receiver) begin(f frame) error {
	name := string(f.data)
	if int(f.file) != len(in.files) || len(in.files) == maxFiles {
		return in.frames.bad("it is damaged: its files are not in order", nil)
	}
	if err := checkName(name); err != nil {
		return in.frames.bad(err.Error(), nil)
	}
	w, err := in.t.Create(name)
	if err != nil {
		return err
	}
	in.files = append(in.files, &received{Writer: w, name: name})
	return nil
}

// finish makes everything durable, all files at once, and commits.
func (in *receiver) finish() error {
	if in.manifest == nil {
		return in.frames.bad("it has no manifest", nil)
	}
	errs := make([]error, len(in.files))
	var all sync.WaitGroup
	for _, f := range in.files {
		if !f.complete {
			return in.frames.bad("it ended within "+f.name, nil)
		}
	}
	for i, f := range in.files {
		all.Go(func() { errs[i] = f.Finish() })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return in.t.Commit(in.manifest)
}
