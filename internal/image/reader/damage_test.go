package reader_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	for _, codecName := range []string{"none", "zstd", "gzip"} {
		t.Run(codecName, func(t *testing.T) {
			t.Parallel()
			good := imagetest.SmallCheckpoint(t, 2, codecName, imagetest.ID)
			for name, file := range good.Files {
				for i := range file {
					bit := byte(1) << (i % 8)
					file[i] ^= bit
					err := imagetest.Use(good)
					file[i] ^= bit
					imagetest.DamageIn(t, err, name, i, "a flipped bit")
				}
			}
			if err := imagetest.Use(good); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	good := imagetest.SmallCheckpoint(t, 2, "zstd", imagetest.ID)
	for name, file := range good.Files {
		for n := range file {
			bad := good.Copy()
			bad.Files[name] = file[:n]
			imagetest.DamageIn(t, imagetest.Use(bad), name, n, "truncation")
		}
		bad := good.Copy()
		bad.Files[name] = append(bad.Files[name], 0)
		imagetest.DamageIn(t, imagetest.Use(bad), name, len(file), "a byte too many")
	}
}

func TestDamagedManifestIsFound(t *testing.T) {
	good := imagetest.SmallCheckpoint(t, 1, "none", imagetest.ID)
	for i := range good.Text {
		for _, flip := range []byte{1, 4, 0x80} {
			bad := good.Copy()
			bad.Text[i] ^= flip
			err := imagetest.Use(bad)
			var version *image.VersionError
			if errors.As(err, &version) && version.Format > image.FormatVersion {
				continue // a flip made it a newer version: refused as well
			}
			imagetest.DamageIn(t, err, store.ManifestName, 0, "a flipped bit")
		}
	}
	for _, text := range []string{"", "{}", "null", "[]", "hello", `{"format": 1}`, `{"format": -3, "checksum": "0123456789abcdef"}`, `"checksum": "`} {
		bad := good.Copy()
		bad.Text = []byte(text)
		imagetest.DamageIn(t, imagetest.Use(bad), store.ManifestName, 0, text)
	}
}

func TestNewerVersionIsNamed(t *testing.T) {
	m := imagetest.SmallCheckpoint(t, 1, "none", imagetest.ID)
	m.Text = []byte(`{"format": 7, "stasis": "9.8.0", "something": ["new"]}`)
	err := imagetest.Use(m)
	var version *image.VersionError
	if !errors.As(err, &version) || version.Format != 7 || version.Stasis != "9.8.0" || version.Checkpoint != "memory" {
		t.Fatal(err)
	}
	for _, part := range []string{"Stasis 9.8.0", "format 7", "use Stasis 9.8.0 or a newer one"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

// TestWrongShards mixes whole shards up.
func TestWrongShards(t *testing.T) {
	good := imagetest.SmallCheckpoint(t, 3, "lz4", imagetest.ID)
	otherID := imagetest.ID
	otherID[0]++
	other := imagetest.SmallCheckpoint(t, 3, "lz4", otherID)
	fewer := imagetest.SmallCheckpoint(t, 2, "lz4", imagetest.ID)
	tests := []struct {
		name   string
		change func(m *storetest.Memory)
		says   string
	}{
		{"swapped", func(m *storetest.Memory) {
			m.Files["img-1"], m.Files["img-2"] = m.Files["img-2"], m.Files["img-1"]
		}, "img-2 of this checkpoint under a wrong name"},
		{"missing", func(m *storetest.Memory) { delete(m.Files, "img-1") }, "can't be opened"},
		{"empty", func(m *storetest.Memory) { m.Files["img-1"] = nil }, "0 bytes"},
		{"of another checkpoint", func(m *storetest.Memory) { m.Files["img-1"] = other.Files["img-1"] }, "from another checkpoint"},
		{"of another number of shards", func(m *storetest.Memory) { m.Files["img-1"] = fewer.Files["img-1"] }, "one of 2 shards"},
		{"something else", func(m *storetest.Memory) { m.Files["img-1"] = bytes.Repeat([]byte("hello"), 1000) }, "does not begin like a shard"},
		{"of another dump with the same id", func(m *storetest.Memory) {
			w, again := imagetest.Begin(t, 3, "lz4")
			imagetest.Put(t, w, 0, 7, imagetest.Tagged(50, 1), image.Extent{Addr: 0x10000, Pages: 1})
			imagetest.Put(t, w, 0, 7, imagetest.Tagged(51, 1), image.Extent{Addr: 0x11000, Pages: 1})
			imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x10000, 2)}})
			m.Files["img-1"] = again.Files["img-1"]
		}, "instead of"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bad := good.Copy()
			test.change(bad)
			err := imagetest.Use(bad)
			imagetest.DamageIn(t, err, "img-1", 1<<30, test.name)
			for _, part := range []string{test.says, "use a good copy"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
		})
	}
}

// TestBlocksSwapped sees that a block that is good in itself does not pass for another one.
func TestBlocksSwapped(t *testing.T) {
	w, m := imagetest.Begin(t, 1, "none")
	imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 1), image.Extent{Addr: 0x10000, Pages: 1})
	imagetest.Put(t, w, 0, 7, imagetest.Tagged(2, 1), image.Extent{Addr: 0x11000, Pages: 1})
	imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x10000, 2)}})
	shard, n := m.Files["img-0"], int(ondisk.BlockLen(1, image.PageSize))
	first, second := shard[image.ShardHeader:image.ShardHeader+n], shard[image.ShardHeader+n:image.ShardHeader+2*n]
	swap := bytes.Clone(first)
	copy(first, second)
	copy(second, swap)
	imagetest.DamageIn(t, imagetest.Use(m), "img-0", image.ShardHeader, "swapped blocks")
}

func TestVerifyListsDamage(t *testing.T) {
	w, m := imagetest.Begin(t, 1, "none")
	for i := range 50 {
		imagetest.Put(t, w, 0, 7, imagetest.Tagged(uint64(i+1), 1), image.Extent{Addr: uint64(i+16) * image.PageSize, Pages: 1})
	}
	imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(16*image.PageSize, 50)}})
	at := func(i int) int { return image.ShardHeader + i*int(ondisk.BlockLen(1, image.PageSize)) + 1000 }
	m.Files["img-0"][at(3)]++
	m.Files["img-0"][at(40)]++
	c := imagetest.Open(t, m)
	err := c.Verify(context.Background(), 2, nil)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 2 {
		t.Fatalf("two blocks are damaged: %v", err)
	}
	for i := range 50 {
		m.Files["img-0"][at(i)] = 0xee
	}
	err = c.Verify(context.Background(), 2, nil)
	if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n != reader.DamagesListed {
		t.Errorf("%d errors instead of %d", n, reader.DamagesListed)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Verify(ctx, 2, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Verify: %v", err)
	}
}

func TestVerifyProgress(t *testing.T) {
	c := imagetest.Open(t, imagetest.SmallCheckpoint(t, 2, "zstd", imagetest.ID))
	last, whole := int64(0), int64(0)
	if err := c.Verify(context.Background(), 1, func(done, total int64) { last, whole = done, total }); err != nil {
		t.Fatal(err)
	}
	if last != whole || whole == 0 {
		t.Errorf("progress ended at %d of %d", last, whole)
	}
}

// folderCheckpoint is a checkpoint on disk, uncompressed, whose shard has several pages' worth of blocks.
func folderCheckpoint(t *testing.T) (*reader.Checkpoint, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := writer.New(target, writer.Options{Shards: 1, ID: imagetest.ID})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		imagetest.Put(t, w, 0, 7, imagetest.Tagged(uint64(64*i+1), 64), image.Extent{Addr: uint64(i+1) << 20, Pages: 64})
	}
	imagetest.PutFile(t, w, "core-7.img", imagetest.Tagged(5, 10))
	var present []image.Range
	for i := range 8 {
		present = append(present, imagetest.PagesOf(uint64(i+1)<<20, 64))
	}
	imagetest.Finish(t, w, map[int][]image.Range{7: present})
	src, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return imagetest.Open(t, src), filepath.Join(dir, "img-0")
}

// TestTruncatedWhileOpen takes the pages of a mapped shard away: that must be an error, not the end of the program.
func TestTruncatedWhileOpen(t *testing.T) {
	c, path := folderCheckpoint(t)
	if !reader.IsMapped(c, 0) {
		t.Fatal("the shard is not mapped")
	}
	if err := c.Verify(context.Background(), 2, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 300<<10); err != nil {
		t.Fatal(err)
	}
	var b reader.Buffer
	if _, err := c.ReadBlock(0, &b); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < c.Blocks(); i++ {
		_, err := c.ReadBlock(i, &b)
		imagetest.DamageIn(t, err, "img-0", int(c.Block(i).Offset), "truncation")
	}
	var out bytes.Buffer
	imagetest.DamageIn(t, c.WriteFile("core-7.img", &out), "img-0", 1<<30, "truncation")
	if err := c.Verify(context.Background(), 2, nil); err == nil {
		t.Error("verify did not find it")
	}
}

func TestOverwrittenWhileOpen(t *testing.T) {
	c, path := folderCheckpoint(t)
	info := c.Block(3)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xaa}, info.Offset+100_000); err != nil {
		t.Fatal(err)
	}
	_, err = c.ReadBlock(3, new(reader.Buffer))
	imagetest.DamageIn(t, err, "img-0", int(info.Offset), "an overwritten byte")
}

// TestReadAllOfALargeShard makes the mapping be let go several times.
func TestReadAllOfALargeShard(t *testing.T) {
	c, _ := folderCheckpoint(t)
	var b reader.Buffer
	for n := 0; n < 3*reader.LetGoAfter; {
		for i := range c.Blocks() {
			data, err := c.ReadBlock(i, &b)
			if err != nil {
				t.Fatal(err)
			}
			if binary.LittleEndian.Uint64(data) != uint64(64*i+1) {
				t.Fatalf("block %d begins with %d", i, binary.LittleEndian.Uint64(data))
			}
			n += len(data)
		}
	}
}

// TestOwnLimitsAreNotDamage sees that a shard that only we can't open is not called damaged.
func TestOwnLimitsAreNotDamage(t *testing.T) {
	for _, cause := range []error{fs.ErrPermission, unix.EMFILE} {
		m := imagetest.SmallCheckpoint(t, 2, "none", imagetest.ID)
		m.Fail = func(operation, name string) error {
			if operation == "open" && name == "img-1" {
				return cause
			}
			return nil
		}
		_, err := reader.Open(m)
		var d *image.DamageError
		if !errors.Is(err, cause) || errors.As(err, &d) {
			t.Errorf("%v became %v", cause, err)
		}
	}
}
