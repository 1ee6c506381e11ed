package selftest

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	// processName is argv[0] of the process that is dumped, and how init knows it.
	processName = "stasis-selftest"
	answerName  = "answer"
	readyName   = "ready"
	memory      = 4 << 20 // bytes that it fills
)

// init turns this process into the one that is dumped if that is what it was started for.
func init() {
	if len(os.Args) != 2 || os.Args[0] != processName {
		return
	}
	if err := live(os.Args[1]); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// live fills memory with something that never was before, and writes its checksum to a file whenever it is asked by SIGUSR1.
func live(dir string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	kept := make([]byte, memory)
	if _, err := unix.Getrandom(kept[:256], 0); err != nil {
		return fmt.Errorf("get random bytes: %w", err)
	}
	for i := 256; i < len(kept); i++ {
		kept[i] = kept[i-256]*31 + byte(i)
	}
	if err := os.WriteFile(filepath.Join(dir, readyName), nil, 0o600); err != nil {
		return fmt.Errorf("say that it is ready: %w", err)
	}
	for range asked {
		part := filepath.Join(dir, answerName+".part")
		if err := os.WriteFile(part, fmt.Appendf(nil, "%016x", xxh3.Hash(kept)), 0o600); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if err := os.Rename(part, filepath.Join(dir, answerName)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return nil
}
