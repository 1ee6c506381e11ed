// Package db keeps what is known about jobs in an embedded database (bbolt, one file): the jobs, their checkpoints, and the events.
//
// The database is a cache with a memory: everything that a restore needs stands beside the checkpoints too, so that a database
// that is damaged or gone can be made anew from them. It is therefore allowed to be strict: what does not read back exactly is
// damage, and [Open] says so by [ErrDamaged]. bbolt checks its meta pages only, so every record carries a checksum of its own.
//
//	meta         "version" → schema version, decimal
//	jobs         name → record of a Job
//	checkpoints  name → bucket: sequence number (8 bytes, big endian) → record of a Checkpoint
//	events       number (8 bytes, big endian) → record of an Event
//
//	record       XXH3-64 of the JSON text (8 bytes, big endian), JSON text
//
// Schema versions:
//
//	1  records were JSON text alone; checkpoints stood in one bucket under "name/number" in decimal digits, in which 10 sorts before 9
//	2  as above
//
// An older database is brought to the present version when it is opened, in one transaction; a newer one is refused by [ErrNewer].
// A DB may be used from several goroutines at once, by one process at a time.
package db
