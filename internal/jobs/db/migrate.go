package db

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// migrations lead from the version that is their index to the next one.
var migrations = map[int]func(*bbolt.Tx) error{1: checksumRecords}

// upgrade brings the database to the present version. One that has it is not written to.
func (d *DB) upgrade() error {
	var version int
	err := d.bolt.View(func(tx *bbolt.Tx) (err error) {
		if version, err = versionOf(tx); err == nil && version == Version {
			err = complete(tx)
		}
		return err
	})
	if err != nil || version == Version {
		return err
	}
	return d.bolt.Update(func(tx *bbolt.Tx) error { return migrate(tx, version) })
}

func migrate(tx *bbolt.Tx, version int) error {
	if version > Version {
		return fmt.Errorf("%w: it has version %d, this Stasis knows up to %d: use the newer Stasis", ErrNewer, version, Version)
	}
	if version == 0 {
		if err := create(tx); err != nil {
			return err
		}
		version = Version
	}
	for ; version < Version; version++ {
		if err := migrations[version](tx); err != nil {
			return fmt.Errorf("bring the database from version %d to %d: %w", version, version+1, err)
		}
	}
	if err := complete(tx); err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(keyVersion, []byte(strconv.Itoa(Version)))
}

// complete says whether all buckets are there.
func complete(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketJobs, bucketCheckpoints, bucketEvents} {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: it has no %s", ErrDamaged, name)
		}
	}
	return nil
}

// create makes an empty database of the present version.
func create(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketJobs, bucketCheckpoints, bucketEvents} {
		if _, err := tx.CreateBucket(name); errors.Is(err, bolterrors.ErrBucketExists) {
			return fmt.Errorf("%w: it has no version", ErrDamaged)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// checksumRecords leads from version 1 to 2.
func checksumRecords(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketJobs, bucketEvents} {
		if err := checksumBucket(tx.Bucket(name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	flat := make(map[string][]byte)
	old := tx.Bucket(bucketCheckpoints)
	if old == nil {
		return fmt.Errorf("%w: it has no %s", ErrDamaged, bucketCheckpoints)
	}
	err := old.ForEach(func(k, v []byte) error {
		flat[string(k)] = append([]byte(nil), v...)
		return nil
	})
	if err != nil {
		return err
	}
	if err := tx.DeleteBucket(bucketCheckpoints); err != nil {
		return err
	}
	all, err := tx.CreateBucket(bucketCheckpoints)
	if err != nil {
		return err
	}
	for key, text := range flat {
		job, digits, _ := strings.Cut(key, "/")
		seq, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || !json.Valid(text) {
			return fmt.Errorf("%w: checkpoint %q", ErrDamaged, key)
		}
		bucket, err := all.CreateBucketIfNotExists([]byte(job))
		if err != nil {
			return err
		}
		if err := put(bucket, number(seq), json.RawMessage(text)); err != nil {
			return err
		}
	}
	return nil
}

func checksumBucket(bucket *bbolt.Bucket) error {
	if bucket == nil {
		return fmt.Errorf("%w: it is not there", ErrDamaged)
	}
	records := make(map[string][]byte)
	err := bucket.ForEach(func(k, v []byte) error {
		if !json.Valid(v) {
			return fmt.Errorf("%w: record %q", ErrDamaged, k)
		}
		records[string(k)] = append([]byte(nil), v...)
		return nil
	})
	if err != nil {
		return err
	}
	for k, text := range records {
		if err := put(bucket, []byte(k), json.RawMessage(text)); err != nil {
			return err
		}
	}
	return nil
}
