package db

import (
	"fmt"
	"path/filepath"
	"testing"
)

// counts is how many events there are, by owner and job.
func counts(t *testing.T, db *DB) map[string]int {
	t.Helper()
	list, err := db.Events(0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, e := range list {
		found[fmt.Sprint(e.Owner, e.JobID)]++
		found[fmt.Sprint(e.Owner)]++
	}
	return found
}

// within says whether as many are there as the bound says, and what waits to be deleted.
func within(got, bound int) bool { return got >= bound && got <= bound+deleteAtOnce }

// Events have numbers that grow, and those of a user, or of a job, that has many push out their own alone. It is so for the next who opens the
// database.
func TestEventsAreNumberedAndBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var last uint64
	write := func(db *DB, owner uint32, job string, n int) {
		t.Helper()
		for range n {
			seq, err := db.AppendEvent(Event{At: day, Owner: owner, JobID: job})
			if err != nil || seq != last+1 {
				t.Fatalf("event %d after %d, %v", seq, last, err)
			}
			last = seq
		}
	}
	for round := range 2 {
		db, _ := open(t, path)
		db.bolt.NoSync = true // speed alone
		db.events.most = bounds{root: 1000, user: 500, users: 1200}
		if round == 0 {
			write(db, 0, "a", 300)
			write(db, 0, "quiet", 20)
			write(db, 17, "b", 100)
		}
		for _, owner := range []uint32{18, 19, 20} {
			for n := range 400 {
				write(db, owner, fmt.Sprint(n%7), 3)
			}
		}
		write(db, 18, "loud", 700)
		found := counts(t, db)
		if found["0"] != 320 || found["17b"] != 100 {
			t.Fatalf("others have pushed them out: %v", found)
		}
		if users := found["17"] + found["18"] + found["19"] + found["20"]; !within(users, 1200) {
			t.Fatalf("all users together have %d: %v", users, found)
		}
		for _, owner := range []string{"18", "19", "20"} {
			if found[owner] > 500+deleteAtOnce || found[owner] < 300 {
				t.Fatalf("user %s has %d events: %v", owner, found[owner], found)
			}
		}
		if found["180"] < 30 {
			t.Fatalf("a loud job has pushed out others of the same user: %v", found)
		}
		newest, err := db.Events(last-3, 100)
		if err != nil || len(newest) != 3 || newest[2].Seq != last || db.LastEvent() != last {
			t.Fatalf("the newest events are %+v, %v", newest, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, _ := open(t, path)
	db.bolt.NoSync = true
	db.events.most = bounds{root: 1000, user: 500, users: 1200}
	write(db, 0, "a", 1500)
	if found := counts(t, db); !within(found["0"], 1000) || found["0quiet"] != 20 {
		t.Fatalf("root's: %v", found)
	}
	// The oldest go first.
	list, err := db.Events(0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Owner == 0 && e.JobID == "a" {
			if e.Seq <= last-1500 {
				t.Fatalf("event %d of %d is still there", e.Seq, last)
			}
			break
		}
	}
}
