package store_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// smallStream is a stream with two files, one of them empty.
func smallStream(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	target := store.NewStream(&b)
	for name, text := range map[string]string{"img-0": "some bytes", "img-1": ""} {
		w, err := target.Create(name)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			tb.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := target.Commit([]byte(`{"the": "manifest"}`)); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// refused sees that a stream is not received, and nothing of it published.
func refused(t *testing.T, stream []byte, what string, at int) {
	t.Helper()
	m := storetest.NewMemory()
	err := store.Receive(bytes.NewReader(stream), m)
	if !errors.Is(err, store.ErrStream) {
		t.Fatalf("a stream %s at %d: %v", what, at, err)
	}
	if !m.Aborted || m.Text != nil {
		t.Fatalf("a stream %s at %d was not aborted", what, at)
	}
}

func TestReceiveFindsAllDamage(t *testing.T) {
	whole := smallStream(t)
	for i := range whole {
		refused(t, whole[:i], "cut off", i)
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << bit
			refused(t, bad, "with a flipped bit", i)
		}
	}
}

func TestReceiveStopsAtTheEnd(t *testing.T) {
	in := bytes.NewReader(append(smallStream(t), "and something else"...))
	if err := store.Receive(in, storetest.NewMemory()); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "and something else" {
		t.Errorf("it left %q", rest)
	}
}

func TestReceiveNotAStream(t *testing.T) {
	for _, text := range []string{"", "{", "hello, this is some text that is longer than any header of a frame"} {
		err := store.Receive(bytes.NewReader([]byte(text)), storetest.NewMemory())
		wantError(t, err, "not a whole checkpoint stream", "sending side")
	}
}

func TestStreamAbortIsTold(t *testing.T) {
	var b bytes.Buffer
	target := store.NewStream(&b)
	writeFile(t, target, "img-0", "x")
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	err := store.Receive(&b, storetest.NewMemory())
	wantError(t, err, "the sending side gave up")
}

func TestStreamReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	target := store.NewStream(w)
	_, err = target.Create("img-0")
	wantError(t, err, "broken pipe", "the program that reads it ended")
	wantError(t, target.Commit([]byte("{}")), "broken pipe")
	if err := target.Abort(); err != nil {
		t.Error(err)
	}
}

// TestReceiveTargetFails sees that an error of the target ends it, is reported as such, and leaves nothing.
func TestReceiveTargetFails(t *testing.T) {
	for _, operation := range []string{"create", "write", "finish", "commit"} {
		broken := errors.New("broken on purpose")
		m := storetest.NewMemory()
		m.Fail = func(op, _ string) error {
			if op == operation {
				return broken
			}
			return nil
		}
		err := store.Receive(bytes.NewReader(smallStream(t)), m)
		if !errors.Is(err, broken) || errors.Is(err, store.ErrStream) || !m.Aborted {
			t.Errorf("%s failed: %v, aborted %v", operation, err, m.Aborted)
		}
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(smallStream(f))
	f.Fuzz(func(t *testing.T, stream []byte) {
		m := storetest.NewMemory()
		err := store.Receive(bytes.NewReader(stream), m)
		if (err == nil) != (m.Text != nil) || (err == nil) == m.Aborted {
			t.Fatalf("error %v, but manifest %q, aborted %v", err, m.Text, m.Aborted)
		}
	})
}

// FuzzReceiveFrames makes streams of frames that are whole, but come in any order: two bytes of plan are the kind and the file
// of a frame, and the third says how much data of the rest it has.
func FuzzReceiveFrames(f *testing.F) {
	start := []byte{1, 0, 4, 1, 0, 0, 0}
	f.Add(start)
	f.Add(append(start[:7:7], 2, 0, 5, 'i', 'm', 'g', '-', '0', 3, 0, 2, 'h', 'i', 4, 0, 0, 5, 0, 2, '{', '}', 6, 0, 0))
	f.Add(append(start[:7:7], 2, 0, 4, '.', '.', '/', 'x', 7, 0, 0))
	f.Add(append(start[:7:7], 5, 0, 2, '{', '}', 2, 0, 1, 'x', 6, 0, 0))
	f.Fuzz(func(t *testing.T, plan []byte) {
		var stream []byte
		for seq := uint64(0); len(plan) >= 3; seq++ {
			kind, file, n := plan[0], uint32(plan[1]), min(int(plan[2]), len(plan)-3)
			stream = append(stream, store.Frame(kind, file, seq, plan[3:3+n])...)
			plan = plan[3+n:]
		}
		m := storetest.NewMemory()
		err := store.Receive(bytes.NewReader(stream), m)
		if (err == nil) != (m.Text != nil) || (err == nil) == m.Aborted {
			t.Fatalf("error %v, but manifest %q, aborted %v", err, m.Text, m.Aborted)
		}
	})
}
