// Package writer writes checkpoints: a [Writer] takes pages and files, stores of them what neither the parent nor the checkpoint itself
// has already, and publishes the checkpoint with its indexes and its manifest. See Writer for what may be called at once.
package writer
