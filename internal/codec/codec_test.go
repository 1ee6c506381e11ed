package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

func newCodec(tb testing.TB, name string, level int) Codec {
	tb.Helper()
	c, err := New(name, level)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// inputs are blocks of the kinds that memory has.
func inputs() map[string][]byte {
	half := random(256 << 10)
	clear(half[100_000:])
	return map[string][]byte{
		"one byte": {1}, "zeros": make([]byte, 256<<10), "text": []byte(strings.Repeat("the quick brown fox ", 9000)),
		"random": random(256 << 10), "half random": half, "odd": half[77_777:111_111], "short": []byte("hello hello hello hello hello hello"),
	}
}

func TestRoundTrip(t *testing.T) {
	for _, name := range Names() {
		for _, level := range []int{0, 1, 5, highest[name]} {
			if level > highest[name] {
				continue
			}
			c := newCodec(t, name, level)
			if c.Name() != name || c.ID().String() != name || !c.ID().Valid() {
				t.Errorf("%s calls itself %s, %v", name, c.Name(), c.ID())
			}
			var dst []byte
			for what, src := range inputs() {
				before := bytes.Clone(src)
				out, ok, err := c.Compress(dst, src)
				if err != nil {
					t.Fatalf("%s %d: %s: %v", name, level, what, err)
				}
				dst = out[:0]
				if !bytes.Equal(before, src) {
					t.Fatalf("%s %d: %s: the source was changed", name, level, what)
				}
				if !ok {
					if name != "none" && (what == "zeros" || what == "text" || what == "half random") {
						t.Errorf("%s %d: %s did not compress", name, level, what)
					}
					continue
				}
				if len(out) >= len(src) || what == "random" {
					t.Errorf("%s %d: %s became %d bytes of %d", name, level, what, len(out), len(src))
				}
				checkDecompress(t, c.ID(), out, src)
			}
		}
	}
}

// checkDecompress sees that out comes back as src, and into space of another length not at all.
func checkDecompress(t *testing.T, id ID, out, src []byte) {
	t.Helper()
	back := make([]byte, len(src))
	if err := Decompress(id, back, out); err != nil || !bytes.Equal(back, src) {
		t.Fatalf("%v: it came back different (%v)", id, err)
	}
	for _, n := range []int{0, 1, len(src) - 1, len(src) + 1, 2 * len(src)} {
		if n == len(src) {
			continue
		}
		if err := Decompress(id, make([]byte, n), out); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v: %d bytes into %d: %v", id, len(src), n, err)
		}
	}
	for _, cut := range []int{0, 1, len(out) / 2, len(out) - 1} {
		if err := Decompress(id, back, out[:cut]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v: cut at %d of %d: %v", id, cut, len(out), err)
		}
	}
	if err := Decompress(id, back, append(bytes.Clone(out), 0)); id != Zstd && !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v: a byte too many: %v", id, err)
	}
}

func TestNoneAndUnknown(t *testing.T) {
	dst := make([]byte, 3)
	if err := Decompress(None, dst, []byte("abc")); err != nil || string(dst) != "abc" {
		t.Errorf("%q, %v", dst, err)
	}
	for _, err := range []error{Decompress(None, dst, []byte("abcd")), Decompress(200, dst, []byte("abc"))} {
		if !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	}
	if id := ID(200); id.Valid() || id.String() != "codec 200" {
		t.Error(id)
	}
}

func TestNewNamesWhatIsValid(t *testing.T) {
	for _, test := range []struct {
		name  string
		level int
		says  []string
	}{
		{"brotli", 0, []string{`"brotli"`, "none, lz4, zstd, gzip, zlib"}},
		{"", 0, []string{"none, lz4"}},
		{"lz4", 10, []string{"lz4", "10", "1 (fast) to 9 (small)"}},
		{"zstd", 23, []string{"1 (fast) to 22"}},
		{"gzip", -1, []string{"-1", "to 9"}},
		{"none", 1, []string{"none has no levels"}},
	} {
		c, err := New(test.name, test.level)
		if err == nil || c != nil {
			t.Errorf("%q %d passed", test.name, test.level)
			continue
		}
		for _, part := range test.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error does not say %q: %v", part, err)
			}
		}
	}
}

// TestConcurrent uses one codec from many goroutines.
func TestConcurrent(t *testing.T) {
	for _, name := range Names() {
		c := newCodec(t, name, 0)
		var crew sync.WaitGroup
		for k := range 8 {
			crew.Go(func() {
				var dst []byte
				for i := range 20 {
					src := []byte(strings.Repeat(fmt.Sprintf("%d and %d, ", k, i), 3000))
					out, ok, err := c.Compress(dst, src)
					if err != nil {
						t.Error(err)
					}
					if !ok {
						continue
					}
					back := make([]byte, len(src))
					if err := Decompress(c.ID(), back, out); err != nil || !bytes.Equal(back, src) {
						t.Errorf("%s: it came back different (%v)", name, err)
					}
					dst = out
				}
			})
		}
		crew.Wait()
	}
}

func FuzzDecompress(f *testing.F) {
	for _, name := range Names()[1:] {
		c := newCodec(f, name, 0)
		out, _, err := c.Compress(nil, []byte(strings.Repeat("hello ", 50)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(c.ID()), uint32(300), out)
	}
	f.Fuzz(func(t *testing.T, id uint8, n uint32, src []byte) {
		dst := make([]byte, n%(256<<10+1))
		if err := Decompress(ID(id), dst, src); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello hello hello hello"), uint8(0))
	f.Add(make([]byte, 5000), uint8(3))
	var codecs []Codec
	for _, name := range Names()[1:] {
		codecs = append(codecs, newCodec(f, name, 0), newCodec(f, name, min(3, highest[name])))
	}
	f.Fuzz(func(t *testing.T, src []byte, which uint8) {
		c := codecs[int(which)%len(codecs)]
		out, ok, err := c.Compress(nil, src)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		back := make([]byte, len(src))
		if err := Decompress(c.ID(), back, out); err != nil || !bytes.Equal(back, src) || len(out) >= len(src) {
			t.Fatalf("%s: %d bytes became %d and came back different (%v)", c.Name(), len(src), len(out), err)
		}
	})
}

// memory is what the benchmarks compress: this program, whose code and tables compress about as the memory of programs does.
func memory(b *testing.B) []byte {
	b.Helper()
	m, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	return m[:len(m)/(256<<10)*(256<<10)]
}

func BenchmarkCompress(b *testing.B) {
	m := memory(b)
	for _, name := range Names()[1:] {
		b.Run(name, func(b *testing.B) {
			c := newCodec(b, name, 0)
			b.SetBytes(256 << 10)
			var dst []byte
			raw, stored, at := 0, 0, 0
			for b.Loop() {
				out, ok, err := c.Compress(dst, m[at:at+256<<10])
				if err != nil {
					b.Fatal(err)
				}
				raw += 256 << 10
				if dst = out; ok {
					stored += len(out)
				} else {
					stored += 256 << 10
				}
				at = (at + 256<<10) % len(m)
			}
			b.ReportMetric(float64(stored)/float64(raw), "left")
		})
	}
}

func BenchmarkDecompress(b *testing.B) {
	m := memory(b)
	for _, name := range Names()[1:] {
		b.Run(name, func(b *testing.B) {
			c := newCodec(b, name, 0)
			var blocks [][]byte
			for at := 0; at < len(m); at += 256 << 10 {
				if out, ok, err := c.Compress(nil, m[at:at+256<<10]); err == nil && ok {
					blocks = append(blocks, out)
				}
			}
			dst := make([]byte, 256<<10)
			b.SetBytes(256 << 10)
			i := 0
			for b.Loop() {
				if err := Decompress(c.ID(), dst, blocks[i]); err != nil {
					b.Fatal(err)
				}
				i = (i + 1) % len(blocks)
			}
		})
	}
}
