package store

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkFolder writes 4 shards from 2 goroutines, synced, to the disk that $TMPDIR is on.
func BenchmarkFolder(b *testing.B) {
	const shards, workers, block = 4, 2, 256<<10 + 128
	total := int64(1 << 30)
	data := make([]byte, block)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	dir := filepath.Join(b.TempDir(), "checkpoint")
	b.SetBytes(total)
	for b.Loop() {
		writeFolder(b, dir, data, shards, workers, int(total/block))
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
}

func writeFolder(b *testing.B, path string, data []byte, shards, workers, blocks int) {
	b.Helper()
	t, err := CreateFolder(path)
	if err != nil {
		b.Fatal(err)
	}
	free := make(chan Writer, shards)
	var all []Writer
	for i := range shards {
		w, err := t.Create([]string{"img-0", "img-1", "img-2", "img-3"}[i])
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, w)
		free <- w
	}
	var crew sync.WaitGroup
	for range workers {
		crew.Go(func() {
			for range blocks / workers {
				w := <-free
				if _, err := w.Write(data); err != nil {
					b.Error(err)
				}
				free <- w
			}
		})
	}
	crew.Wait()
	for _, w := range all {
		crew.Go(func() {
			if err := w.Finish(); err != nil {
				b.Error(err)
			}
		})
	}
	crew.Wait()
	if err := t.Commit([]byte("{}")); err != nil {
		b.Fatal(err)
	}
}
