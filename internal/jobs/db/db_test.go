package db

import (
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

var day = time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)

func open(t *testing.T, path string) (*DB, *Contents) {
	t.Helper()
	db, contents, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, contents
}

// fill writes a few jobs and returns what reading them has to give.
func fill(t *testing.T, db *DB) *Contents {
	t.Helper()
	want := &Contents{Checkpoints: map[string][]Checkpoint{}}
	for _, name := range []string{"a", "b"} {
		job := Job{Spec: Spec{Name: name, Argv: []string{"true"}, Every: time.Minute, Restart: RestartAlways}, State: StateRunning, Created: day}
		for seq := uint64(1); seq <= 300; seq += 43 { // over one byte
			cp := Checkpoint{Job: name, Seq: seq, ID: strconv.FormatUint(seq, 16), Created: day, Reason: "schedule"}
			job.LastSeq, job.Parent = seq, seq
			if err := db.PutCheckpoint(cp, job); err != nil {
				t.Fatal(err)
			}
			want.Checkpoints[name] = append(want.Checkpoints[name], cp)
		}
		want.Jobs = append(want.Jobs, job)
		if _, err := db.AppendEvent(Event{At: day, Job: name, Kind: "started"}); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

func TestWhatIsWrittenReadsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, empty := open(t, path)
	if len(empty.Jobs) != 0 || db.LastEvent() != 0 {
		t.Fatalf("a new database has %+v", empty)
	}
	want := fill(t, db)
	db.Close()
	db, got := open(t, path)
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("read back:\n%+v\nwant\n%+v", got, want)
	}
	if err := db.DeleteCheckpoints("a", 1, 44); err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteJob("b"); err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteJob("nobody"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	_, got = open(t, path)
	if len(got.Jobs) != 1 || len(got.Checkpoints) != 1 || !reflect.DeepEqual(got.Checkpoints["a"], want.Checkpoints["a"][2:]) {
		t.Fatalf("after deleting: %+v", got)
	}
}

func TestUpgradeFromVersion1(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	packed, err := os.Open("testdata/version-1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	plain, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	old, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is of the present version
		db, got := open(t, path)
		if len(got.Jobs) != 2 || got.Jobs[0].Spec.Name != "sum" || got.Jobs[0].Spec.Every != 5*time.Minute || got.Jobs[1].Exit.Signal != "SIGKILL" {
			t.Fatalf("jobs: %+v", got.Jobs)
		}
		list := got.Checkpoints["sum"]
		if len(list) != 11 {
			t.Fatalf("%d checkpoints, want 11", len(list))
		}
		for i, cp := range list {
			if cp.Seq != uint64(i+1) || cp.PauseUS != int64(1001+i) {
				t.Fatalf("checkpoint %d is %+v", i, cp)
			}
		}
		events, err := db.Events(0, 100)
		if err != nil || len(events) != 11 || db.LastEvent() != 11 {
			t.Fatalf("events: %v, %v", events, err)
		}
		db.Close()
	}
}

func TestNewerIsRefusedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, _ := open(t, path)
	err := db.bolt.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyVersion, []byte(strconv.Itoa(Version+1)))
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, _, err := Open(path); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
		t.Fatalf("a newer database: %v", err)
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open(t, path)
	if _, _, err := Open(path); !errors.Is(err, ErrInUse) || errors.Is(err, ErrDamaged) {
		t.Fatalf("opened twice: %v", err)
	}
}

// Whatever is broken, Open either gives exactly what was written or says that the database is damaged; it never crashes.
func TestDamageIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	db, _ := open(t, path)
	want := fill(t, db)
	db.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	found := 0
	for i := range 120 {
		broken := append([]byte(nil), whole...)
		switch i % 3 {
		case 0:
			broken = broken[:random.IntN(len(broken)-1)+1]
		case 1: // a page of nothing
			at := random.IntN(len(broken)/4096) * 4096
			clear(broken[at : at+4096])
		case 2:
			for range 40 {
				broken[random.IntN(len(broken))] ^= byte(1 + random.IntN(255))
			}
		}
		path := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		db, got, err := Open(path)
		switch {
		case err == nil:
			if !reflect.DeepEqual(got, want) && !older(got, want) {
				t.Fatalf("damage %d was not seen, and reads as %+v", i, got)
			}
			_ = db.PutJob(Job{Spec: Spec{Name: "c"}}) // may fail, must not crash
			db.Close()
		case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer):
			t.Fatalf("damage %d: %v", i, err)
		default:
			found++
		}
		os.Remove(path)
	}
	if found < 40 {
		t.Fatalf("only %d of 120 damaged databases were found so", found)
	}
	if err := os.WriteFile(path, whole[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	aside, err := SetAside(path, day)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(aside); err != nil || info.Size() != 100 {
		t.Fatalf("set aside: %v, %v", info, err)
	}
	open(t, path)
}

// older says whether got is what stood there some transactions before: bbolt falls back to the other of its two meta pages.
func older(got, want *Contents) bool {
	for name, list := range got.Checkpoints {
		if full := want.Checkpoints[name]; len(list) > len(full) || !reflect.DeepEqual(list, full[:len(list)]) {
			return false
		}
	}
	return true
}
