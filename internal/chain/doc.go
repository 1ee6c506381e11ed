// Package chain knows how checkpoints belong together: it finds the ancestors of a checkpoint.
package chain
