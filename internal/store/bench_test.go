package store

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkFolder writes 4 shards from 2 goroutines, to the disk under $STASIS_BENCH_DIR or the temporary folder, synced.
func BenchmarkFolder(b *testing.B) {
	const shards, workers, block = 4, 2, 256<<10 + 128
	total := int64(1 << 30)
	data := make([]byte, block)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	b.SetBytes(total)
	for b.Loop() {
		dir, err := os.MkdirTemp(os.Getenv("STASIS_BENCH_DIR"), "stasis-bench-")
		if err != nil {
			b.Fatal(err)
		}
		writeFolder(b, filepath.Join(dir, "c"), data, shards, workers, int(total/block))
		os.RemoveAll(dir)
	}
}

func writeFolder(b *testing.B, path string, data []byte, shards, workers, blocks int) {
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
