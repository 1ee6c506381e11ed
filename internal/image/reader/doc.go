// Package reader opens checkpoints and reads them: a [Checkpoint] finds pages, reads blocks, differences and files, of its own shards and
// those of its ancestors, and checks all that it reads. Its methods may be called at once, each with a [Buffer] of its own.
package reader
