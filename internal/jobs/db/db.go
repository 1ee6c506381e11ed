package db

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/zeebo/xxh3"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Version is the schema version that this package writes.
const Version = 2

// lockWait is how long Open waits for another process to let go of the database: a daemon that is being replaced.
const lockWait = 3 * time.Second

// What can be wrong with a database.
var (
	ErrDamaged = errors.New("the database is damaged")
	ErrNewer   = errors.New("the database was written by a newer Stasis")
	ErrInUse   = errors.New("the database is in use by another process")
)

var (
	bucketMeta        = []byte("meta")
	bucketJobs        = []byte("jobs")
	bucketCheckpoints = []byte("checkpoints")
	bucketEvents      = []byte("events")
	keyVersion        = []byte("version")
)

// DB is an open database.
type DB struct {
	bolt   *bbolt.DB
	events kept
}

// Contents is all that a database knows of jobs, as read by Open.
type Contents struct {
	Jobs        []Job
	Checkpoints map[string][]Checkpoint // by job, oldest first
}

// Open opens a database, or makes one. It reads all of it, so that damage is found here and not later.
func Open(path string) (db *DB, contents *Contents, err error) {
	// A damaged file makes bbolt panic, or touch memory that is not there. (With NoFreelistSync it would do so in a goroutine
	// of its own, out of reach.)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			db, contents, err = nil, nil, fmt.Errorf("%s: %w: %v", path, ErrDamaged, r)
		}
	}()
	bolt, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, nil, openError(path, err)
	}
	db = &DB{bolt: bolt, events: kept{of: make(map[uint32]map[string][]uint64), count: make(map[uint32]int), most: usual}}
	if err := db.upgrade(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), bolt.Close())
	}
	contents = &Contents{Checkpoints: make(map[string][]Checkpoint)}
	err = bolt.View(func(tx *bbolt.Tx) error { return errors.Join(contents.read(tx), db.events.read(tx)) })
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), bolt.Close())
	}
	return db, contents, nil
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%s: %w: is a daemon running already?", path, ErrInUse)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
	}
	if info, statErr := os.Stat(path); statErr == nil && info.Mode().IsRegular() && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s: %w: %w", path, ErrDamaged, err) // such as a file size that is no database's
	}
	return fmt.Errorf("open the database: %w", err)
}

// SetAside renames a damaged database, so that a new one can be made, and returns its new name.
func SetAside(path string, now time.Time) (string, error) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set the damaged database aside: %w", err)
	}
	return aside, nil
}

// Close closes the database.
func (d *DB) Close() error { return d.bolt.Close() }

// read reads and checks everything.
func (c *Contents) read(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketJobs).ForEach(func(k, v []byte) error {
		var job Job
		if err := decode(v, &job); err != nil || job.Spec.Name != string(k) {
			return fmt.Errorf("%w: job %q: %w", ErrDamaged, k, err)
		}
		c.Jobs = append(c.Jobs, job)
		return nil
	})
	if err != nil {
		return err
	}
	all := tx.Bucket(bucketCheckpoints)
	return all.ForEachBucket(func(name []byte) error {
		return all.Bucket(name).ForEach(func(k, v []byte) error {
			var cp Checkpoint
			if err := decode(v, &cp); err != nil || len(k) != 8 || cp.Seq != binary.BigEndian.Uint64(k) {
				return fmt.Errorf("%w: checkpoint %x of job %q: %w", ErrDamaged, k, name, err)
			}
			c.Checkpoints[string(name)] = append(c.Checkpoints[string(name)], cp)
			return nil
		})
	})
}

// PutJob writes a job.
func (d *DB) PutJob(job Job) error {
	return d.update("job "+job.Spec.Name, func(tx *bbolt.Tx) error {
		return put(tx.Bucket(bucketJobs), []byte(job.Spec.Name), job)
	})
}

// DeleteJob removes a job with all its checkpoints' records.
func (d *DB) DeleteJob(name string) error {
	return d.update("job "+name, func(tx *bbolt.Tx) error {
		if err := tx.Bucket(bucketJobs).Delete([]byte(name)); err != nil {
			return err
		}
		err := tx.Bucket(bucketCheckpoints).DeleteBucket([]byte(name))
		if errors.Is(err, bolterrors.ErrBucketNotFound) {
			return nil
		}
		return err
	})
}

// PutCheckpoint writes a checkpoint and its job in one step.
func (d *DB) PutCheckpoint(cp Checkpoint, job Job) error {
	return d.update(fmt.Sprintf("checkpoint %d of job %s", cp.Seq, cp.Job), func(tx *bbolt.Tx) error {
		bucket, err := tx.Bucket(bucketCheckpoints).CreateBucketIfNotExists([]byte(cp.Job))
		if err != nil {
			return err
		}
		if err := put(bucket, number(cp.Seq), cp); err != nil {
			return err
		}
		return put(tx.Bucket(bucketJobs), []byte(job.Spec.Name), job)
	})
}

// DeleteCheckpoints removes records of checkpoints.
func (d *DB) DeleteCheckpoints(job string, seqs ...uint64) error {
	return d.update("checkpoints of job "+job, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketCheckpoints).Bucket([]byte(job))
		if bucket == nil {
			return nil
		}
		for _, seq := range seqs {
			if err := bucket.Delete(number(seq)); err != nil {
				return err
			}
		}
		return nil
	})
}

// update runs a transaction. Damage among the free pages, which Open does not look at, shows here, by an error or a panic.
func (d *DB) update(what string, work func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("write %s: %w: %v", what, ErrDamaged, r)
		}
	}()
	if err := d.bolt.Update(work); err != nil {
		return fmt.Errorf("write %s to the database: %w", what, err)
	}
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func put(bucket *bbolt.Bucket, key []byte, record any) error {
	value, err := encode(record)
	if err != nil {
		return err
	}
	return bucket.Put(key, value)
}

func encode(record any) ([]byte, error) {
	text, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	return append(number(xxh3.Hash(text)), text...), nil
}

func decode(value []byte, record any) error {
	if len(value) < 8 || binary.BigEndian.Uint64(value) != xxh3.Hash(value[8:]) {
		return errors.New("wrong checksum")
	}
	return json.Unmarshal(value[8:], record)
}

// versionOf is 0 for a new database.
func versionOf(tx *bbolt.Tx) (int, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return 0, nil
	}
	version, err := strconv.Atoi(string(meta.Get(keyVersion)))
	if err != nil || version < 1 {
		return 0, fmt.Errorf("%w: schema version %q", ErrDamaged, meta.Get(keyVersion))
	}
	return version, nil
}
