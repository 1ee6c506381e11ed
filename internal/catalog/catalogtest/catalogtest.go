// Package catalogtest makes small checkpoints for tests, with no process behind them. [Make] may be called from several goroutines
// at once.
package catalogtest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"stasis/internal/chain"
	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/writer"
	"stasis/internal/store/storetest"
)

// Options say what a checkpoint looks like. The zero value is good.
type Options struct {
	Command string    // of the root; "": sleep
	Kind    string    // "": full
	Created time.Time // zero: now
	Parent  string    // folder of the checkpoint that it builds on, beside it
}

const pid = 4711

// Make makes a checkpoint of one process in a folder, and the folders above it, readable by their owner alone. It gives its id. The files
// are not made durable.
func Make(tb testing.TB, dir string, o Options) (id string) {
	tb.Helper()
	if o.Command == "" {
		o.Command = "sleep"
	}
	if o.Kind == "" {
		o.Kind = image.KindFull
	}
	if o.Created.IsZero() {
		o.Created = time.Now()
	}
	compressor, err := codec.New("lz4", 0)
	check(tb, err)
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // it never fails
	options := writer.Options{Shards: 1, Codec: compressor, ID: raw}
	if o.Parent != "" {
		parent, err := chain.Open(o.Parent)
		check(tb, err)
		defer parent.Close()
		options.Parent, options.ParentPath = parent, filepath.Join("..", filepath.Base(o.Parent))
	}
	memory := storetest.NewMemory()
	w, err := writer.New(memory, options)
	check(tb, err)
	const at = 0x10000
	pages := image.Range{Start: at, End: at + 2*image.PageSize}
	// One page is the same in all of them, so that a child refers to its parent.
	same, own := []byte(strings.Repeat("stasis..", image.PageSize/8)), make([]byte, image.PageSize)
	copy(own, raw[:])
	check(tb, w.PutPages(0, image.PageBlock{PID: pid, Extents: []image.Extent{{Addr: at, Pages: 2}}, Data: append(same, own...)}))
	check(tb, w.PutFile("core-4711.img", strings.NewReader("state")))
	check(tb, w.Finish(map[int][]image.Range{pid: {pages}}, &image.Manifest{
		Stasis: "test", Name: filepath.Base(dir), Kind: o.Kind, Engine: "blind", RootPID: pid, Created: o.Created.UTC(),
		Processes: []image.Process{{PID: pid, PPID: 1, Comm: o.Command, State: "S", Threads: []int{pid}}},
		Figures:   image.Figures{PauseUS: 1500, DumpUS: 20000, Rounds: []image.Round{{Pages: 2, Bytes: 2 * image.PageSize, US: 100}}},
	}))
	check(tb, os.MkdirAll(dir, 0o700))
	text, err := memory.Manifest()
	check(tb, err)
	shard, err := memory.Open(image.ShardName(0))
	check(tb, err)
	data := make([]byte, shard.Size())
	_, err = shard.ReadAt(data, 0)
	check(tb, err)
	check(tb, os.WriteFile(filepath.Join(dir, image.ShardName(0)), data, 0o600))
	check(tb, os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o600))
	return hex.EncodeToString(raw[:])
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Many makes n checkpoints c-00000 … in a folder, a second apart, as copies of one with other ids. They have no shards: they are good
// for lists only.
func Many(tb testing.TB, dir string, n int) {
	tb.Helper()
	first := filepath.Join(dir, "first")
	at := time.Unix(1_700_000_000, 0).UTC()
	id := Make(tb, first, Options{Created: at})
	text, err := os.ReadFile(filepath.Join(first, "manifest.json"))
	check(tb, err)
	check(tb, os.RemoveAll(first))
	const key = `"checksum": "`
	for i := range n {
		one := strings.Replace(string(text), id, fmt.Sprintf("%032x", i+1), 1)
		one = strings.Replace(one, at.Format(time.RFC3339), at.Add(time.Duration(i)*time.Second).Format(time.RFC3339), 1)
		digits := strings.LastIndex(one, key) + len(key)
		one = one[:digits] + strings.Repeat("0", 16) + one[digits+16:]
		one = one[:digits] + fmt.Sprintf("%016x", xxh3.HashString(one)) + one[digits+16:]
		folder := filepath.Join(dir, fmt.Sprintf("c-%05d", i))
		check(tb, os.MkdirAll(folder, 0o700))
		check(tb, os.WriteFile(filepath.Join(folder, "manifest.json"), []byte(one), 0o600))
	}
}
