package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"stasis/internal/image"
	"stasis/internal/store"
)

// openStream opens a file that holds a checkpoint as one stream, and is nil for any other.
func openStream(path string) *os.File {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	head := make([]byte, 4)
	if _, err := file.ReadAt(head, 0); err != nil && err != io.EOF || !store.StreamBegins(head) {
		file.Close()
		return nil
	}
	return file
}

// hasImages says whether a folder holds CRIU's own images.
func hasImages(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "inventory.img"))
	return err == nil
}

// importStream makes a folder of a checkpoint that comes as one stream.
func (a *app) importStream(ctx context.Context, from *os.File, f *importFlags) error {
	for _, flag := range []string{"stream", "compression", "level", "allow-holes"} {
		if f.given(flag) {
			return badInput("--%s: a stream of Stasis is stored as it was made; stasis compact can change it later", flag)
		}
	}
	if isTerminal(int(from.Fd())) {
		return badInput("- reads the checkpoint from standard input, which is a terminal: send one in, as in stasis dump process PID --dir - | stasis import - --name NAME")
	}
	name := f.name
	if f.dir == "" && name == "" {
		name = a.newNameOf("stream")
	}
	where, err := a.placeOf(0, f.dir, name)
	if err != nil {
		return err
	}
	begun := time.Now()
	target, err := store.CreateFolder(where.dir)
	if err != nil {
		return err
	}
	if err := a.receiveInto(ctx, from, target); err != nil {
		return err
	}
	folder, err := store.OpenFolder(where.dir)
	if err != nil {
		return err
	}
	m, err := image.ReadManifest(folder)
	if err != nil {
		return err
	}
	return a.showImport(&importReport{
		ID: m.ID, Name: m.Name, Dir: where.dir, PID: m.RootPID, Command: commandOf(m), Processes: len(m.Processes), Folders: 1,
		Compression: m.Codec, Streams: len(m.Shards), TookUS: time.Since(begun).Microseconds(),
		BytesPerSecond: perSecond(m.Figures.BytesStored, time.Since(begun)), Figures: m.Figures, stream: true,
	})
}
