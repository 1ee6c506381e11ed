// Package imagetest makes checkpoints and chains of them for tests: in memory, with content that tells whose it is.
package imagetest
