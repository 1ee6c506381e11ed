package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"stasis/internal/workdir"
)

const (
	// archiveImages is the folder in an exported checkpoint that has CRIU's images.
	archiveImages = "checkpoint"

	maxExtra   = 16 << 20 // bytes of a description that is kept
	maxLog     = 64 << 10 // bytes of CRIU's log that are looked at
	maxEntries = 1 << 20  // files in an archive
	maxWindow  = 256 << 20
	roomShare  = 0.9 // of the free room that an archive may take when it is unpacked
)

// archive is the checkpoint that a container engine (podman, CRI-O, containerd) exported, with its images unpacked into a work
// folder. Close removes that.
type archive struct {
	root   string   // of what was unpacked
	images string   // the folder with CRIU's images
	extras []string // descriptions of the container that are kept, in root
	others []string // what is not imported
	work   *workdir.Dir
	left   int64 // bytes that may still be unpacked
}

// descriptions are the files of an archive that say what the container was.
var descriptions = []string{"config.dump", "spec.dump", "network.status", "status.dump", "deleted.files"}

// unpackArchive unpacks the images of an archive: a tar file, which may be compressed with gzip or Zstandard.
func unpackArchive(ctx context.Context, name string) (*archive, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is neither a folder nor a file")
	}
	plain, err := decompressed(file)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	a := &archive{}
	if a.work, err = workdir.New(name, uint64(st.Size())*16); err != nil {
		return nil, err
	}
	if a.root, err = filepath.EvalSymlinks(a.work.Path()); err == nil {
		err = a.unpack(ctx, plain)
	}
	if err != nil {
		return nil, errors.Join(explained(err), a.Close())
	}
	return a, nil
}

// Close removes what was unpacked.
func (a *archive) Close() error { return a.work.Remove() }

// decompressed finds out by its first bytes how a file is compressed.
func decompressed(file io.Reader) (io.ReadCloser, error) {
	r := bufio.NewReaderSize(file, 1<<20)
	head, _ := r.Peek(262)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("it is not a whole gzip file: %w", err)
		}
		return z, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("it is not a whole Zstandard file: %w", err)
		}
		return z.IOReadCloser(), nil
	case len(head) == 262 && string(head[257:262]) == "ustar":
		return io.NopCloser(r), nil
	}
	return nil, errors.New("it is neither a folder nor an archive of a container engine (tar, alone or with gzip or Zstandard): give CRIU's images, or unpack it first")
}

func (a *archive) unpack(ctx context.Context, plain io.Reader) error {
	var st unix.Statfs_t
	if err := unix.Statfs(a.root, &st); err != nil {
		return err
	}
	a.left = int64(float64(st.Bavail) * float64(st.Bsize) * roomShare)
	t := tar.NewReader(plain)
	for n := 0; ; n++ {
		entry, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && n == maxEntries {
			err = fmt.Errorf("it has more than %d files", maxEntries)
		}
		if err != nil {
			return fmt.Errorf("it is not a whole archive: %w", err)
		}
		err = a.take(entry, t)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("it is not a whole archive: it ends in %s", entry.Name)
		}
		if err != nil {
			return fmt.Errorf("%s in the archive: %w", entry.Name, err)
		}
	}
	if a.images = filepath.Join(a.root, archiveImages); !hasInventory(a.images) {
		return fmt.Errorf("it has no %s/%s: it is not the exported checkpoint of a container", archiveImages, inventoryImage)
	}
	return nil
}

// take unpacks an entry if it is wanted. Names are taken apart, never followed: nothing is written outside of the work folder.
func (a *archive) take(entry *tar.Header, content io.Reader) error {
	dir, name := path.Split(path.Clean(entry.Name))
	dir = strings.TrimSuffix(dir, "/")
	regular := entry.Typeflag == tar.TypeReg || entry.Typeflag == tar.TypeGNUSparse
	switch {
	case imagesFolder(dir) && entry.Typeflag == tar.TypeSymlink && name == parentLink:
		// Whether it stays inside is looked at when it is followed.
		if err := os.MkdirAll(filepath.Join(a.root, dir), 0o700); err != nil {
			return err
		}
		return os.Symlink(entry.Linkname, filepath.Join(a.root, dir, name))
	case imagesFolder(entry.Name) && entry.Typeflag == tar.TypeDir, !regular && (imagesFolder(dir) || dir == ""):
		return nil
	case imagesFolder(dir) && (strings.HasSuffix(name, ".img") || name == "stats-dump"):
		return a.write(filepath.Join(dir, name), content, a.left)
	case name == "dump.log" && (dir == "" || imagesFolder(dir)):
		return a.write(filepath.Join(dir, name), io.LimitReader(content, maxLog), a.left)
	case dir == "" && slices.Contains(descriptions, name):
		a.extras = append(a.extras, name)
		return a.write(name, content, maxExtra)
	case dir == "":
		a.others = append(a.others, name)
	case strings.HasPrefix(dir, "volumes") && !slices.Contains(a.others, "volumes"):
		a.others = append(a.others, "volumes")
	}
	return nil
}

// imagesFolder says whether a folder of an archive has images: of the dump, or of a pre-dump before it.
func imagesFolder(dir string) bool {
	dir = path.Clean(dir)
	return dir == archiveImages || strings.HasPrefix(dir, "pre-"+archiveImages) && !strings.Contains(dir, "/")
}

func (a *archive) write(name string, content io.Reader, limit int64) error {
	to := filepath.Join(a.root, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(content, limit+1))
	if err == nil && n > limit {
		if limit == a.left {
			err = fmt.Errorf("there is too little room to unpack it in %s: %w", filepath.Dir(a.root), unix.ENOSPC)
		} else {
			err = fmt.Errorf("it has more than %d bytes", limit)
		}
	}
	a.left -= n
	return errors.Join(err, f.Close())
}

// notes say what of the archive is not imported.
func (a *archive) notes() []string {
	var notes []string
	for _, name := range a.others {
		switch name {
		case "rootfs-diff.tar":
			notes = append(notes, "rootfs-diff.tar, the files that the container changed, is not imported: a restore needs a root file system (--root) with these changes")
		case "volumes":
			notes = append(notes, "the container's volumes are not imported: mount them for a restore (--external)")
		case "devshm-checkpoint.tar":
			notes = append(notes, "devshm-checkpoint.tar, the container's /dev/shm, is not imported: unpack it there before a restore")
		}
	}
	if len(a.extras) > 0 {
		notes = append(notes, "kept in the checkpoint: "+strings.Join(a.extras, ", "))
	}
	return notes
}
