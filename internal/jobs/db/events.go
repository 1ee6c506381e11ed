package db

import (
	"encoding/binary"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
)

// bounds are how many events are kept. Where there are more, the oldest one goes of the job that has most, of the user whose bound it is: nobody's
// events push out another user's, and no job's those of a quieter one.
type bounds struct {
	root  int // of root's jobs, and of what belongs to no job
	user  int // of any other user
	users int // of all other users together; it is the one with most whose events go
}

var usual = bounds{root: 10_000, user: 5_000, users: 50_000}

// kept knows which events there are.
type kept struct {
	most bounds

	mu    sync.Mutex
	of    map[uint32]map[string][]uint64 // guarded by mu: numbers by owner and id of the job, growing
	count map[uint32]int                 // guarded by mu: of an owner
	users int                            // guarded by mu: of all but root
	gone  []uint64                       // guarded by mu: taken out, and still in the database
}

// deleteAtOnce is how many events are deleted together: each is on a page of its own.
const deleteAtOnce = 128

func (k *kept) read(tx *bbolt.Tx) error {
	return tx.Bucket(bucketEvents).ForEach(func(key, value []byte) error {
		var e Event
		if err := decode(value, &e); err != nil || len(key) != 8 {
			return fmt.Errorf("%w: event %x: %w", ErrDamaged, key, err)
		}
		e.Seq = binary.BigEndian.Uint64(key)
		k.addLocked(&e) // nobody else knows of it yet
		return nil
	})
}

func (k *kept) addLocked(e *Event) {
	if k.of[e.Owner] == nil {
		k.of[e.Owner] = make(map[string][]uint64)
	}
	k.of[e.Owner][e.JobID] = append(k.of[e.Owner][e.JobID], e.Seq)
	k.changeLocked(e.Owner, 1)
}

func (k *kept) changeLocked(owner uint32, by int) {
	if k.count[owner] += by; k.count[owner] == 0 {
		delete(k.count, owner)
		delete(k.of, owner)
	}
	if owner != 0 {
		k.users += by
	}
}

// surplusLocked takes out the events that have to make room after an event of an owner.
func (k *kept) surplusLocked(owner uint32) (gone []uint64) {
	most := k.most.user
	if owner == 0 {
		most = k.most.root
	}
	for k.count[owner] > most {
		gone = append(gone, k.takeLocked(owner))
	}
	for k.users > k.most.users {
		var loudest uint32
		for uid, n := range k.count {
			if uid != 0 && (loudest == 0 || n > k.count[loudest]) {
				loudest = uid
			}
		}
		gone = append(gone, k.takeLocked(loudest))
	}
	return gone
}

// takeLocked takes out the oldest event of the job that has most, or of the one with the oldest where several have.
func (k *kept) takeLocked(owner uint32) uint64 {
	jobs := k.of[owner]
	var loudest string
	for id, list := range jobs {
		if most := jobs[loudest]; len(list) > len(most) || len(list) == len(most) && list[0] < most[0] {
			loudest = id
		}
	}
	list := jobs[loudest]
	if jobs[loudest] = list[1:]; len(list) == 1 {
		delete(jobs, loudest)
	}
	k.changeLocked(owner, -1)
	return list[0]
}

// AppendEvent writes an event and returns the number that it got; numbers only grow.
func (d *DB) AppendEvent(e Event) (seq uint64, err error) {
	k := &d.events
	k.mu.Lock()
	defer k.mu.Unlock()
	gone := k.gone
	if len(gone) < deleteAtOnce {
		gone = nil
	}
	err = d.update("event", func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketEvents)
		if seq, err = bucket.NextSequence(); err != nil {
			return err
		}
		e.Seq = seq
		for _, old := range gone {
			if err := bucket.Delete(number(old)); err != nil {
				return err
			}
		}
		return put(bucket, number(seq), e)
	})
	if err != nil {
		return 0, err
	}
	k.gone = k.gone[len(gone):]
	k.addLocked(&e)
	k.gone = append(k.gone, k.surplusLocked(e.Owner)...)
	return seq, nil
}

// Events returns up to limit events with numbers above after, oldest first.
func (d *DB) Events(after uint64, limit int) ([]Event, error) {
	var list []Event
	err := d.bolt.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketEvents).Cursor()
		for k, v := cursor.Seek(number(after + 1)); k != nil && len(list) < limit; k, v = cursor.Next() {
			var e Event
			if err := decode(v, &e); err != nil {
				return fmt.Errorf("%w: event %x: %w", ErrDamaged, k, err)
			}
			list = append(list, e)
		}
		return nil
	})
	return list, err
}

// LastEvent is the number of the newest event, 0 where there is none.
func (d *DB) LastEvent() uint64 {
	var last uint64
	_ = d.bolt.View(func(tx *bbolt.Tx) error {
		last = tx.Bucket(bucketEvents).Sequence()
		return nil
	})
	return last
}
