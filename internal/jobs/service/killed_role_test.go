package service_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"stasis"
	"stasis/internal/config"
	"stasis/internal/daemon"
	"stasis/internal/engine"
	"stasis/internal/jobs/service"
)

// Roles of this test binary, besides that of the test.
const (
	roleVariable = "STASIS_TEST_ROLE"
	roleDaemon   = "daemon" // which ends itself at a step of a dump
	roleWork     = "work"   // a job that proves its own memory
	dirVariable  = "STASIS_TEST_DIR"
	killFile     = "kill-at" // in that folder; has the step
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleDaemon:
		if err := mortalDaemon(os.Getenv(dirVariable)); err != nil {
			panic(err)
		}
	case roleWork:
		work()
	default:
		os.Exit(m.Run()) //nolint:forbidigo // this is the main of the tests
	}
}

// Moments of a dump besides its steps.
const (
	midCopy  stasis.Step = "in the middle of the copy"
	returned stasis.Step = "after the dump, before its checkpoint is noted"
)

// configOf is the configuration of the daemon in a folder.
func configOf(dir string) *config.Config {
	c := config.Default()
	c.Checkpoint.Dir, c.Checkpoint.Stream, c.Daemon.Socket = filepath.Join(dir, "checkpoints"), 2, filepath.Join(dir, "s.sock")
	c.Jobs.Dir, c.Jobs.State, c.Jobs.DumpOnStop = filepath.Join(dir, "jobs"), filepath.Join(dir, "state.db"), false
	return c
}

// mortalDaemon is a daemon that kills itself where the file says.
func mortalDaemon(dir string) error {
	at := func(step stasis.Step) {
		if text, err := os.ReadFile(filepath.Join(dir, killFile)); err == nil && string(text) == string(step) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	library := engine.TheLibrary()
	library.Dump = func(ctx context.Context, o stasis.DumpOptions) (*stasis.DumpResult, error) {
		jobs := o.AtStep
		o.AtStep = func(step stasis.Step) error {
			at(step)
			if jobs != nil {
				return jobs(step)
			}
			return nil
		}
		o.Progress = func(p stasis.Progress) {
			if p.Step == stasis.StepCopy && p.Done > 0 {
				at(midCopy)
			}
		}
		result, err := stasis.Dump(ctx, o)
		if err == nil {
			at(returned)
		}
		return result, err
	}
	c := configOf(dir)
	listening, err := daemon.Listen(&c.Daemon, 0)
	if err != nil {
		return err
	}
	defer listening.Close()
	d, err := daemon.New(daemon.Options{
		Config: c, Library: library, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Jobs: func(e *engine.Engine, log *slog.Logger) (daemon.Jobs, error) { return service.New(e, "", log) },
	})
	if err != nil {
		return err
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	go func() { <-asked; d.Stop() }()
	return d.Serve(listening.Listeners...)
}

// state is the memory of the job: pages that are written again and again, and more that were written once. Each step depends on all
// that was before.
type state struct {
	n, sum  uint64
	written []uint64 // one in each page
	ballast []byte
}

const (
	page         = 4096
	writtenPages = 128
	ballastPages = 1024
)

func newState() *state {
	s := &state{written: make([]uint64, writtenPages*page/8), ballast: make([]byte, ballastPages*page)}
	for i := 0; i < len(s.ballast); i += 8 { // nothing that compresses
		binary.LittleEndian.PutUint64(s.ballast[i:], xxh3.Hash(binary.LittleEndian.AppendUint64(nil, uint64(i))))
	}
	return s
}

// step gives the next line.
func (s *state) step() (n, sum uint64) {
	s.n++
	cell := &s.written[s.n%writtenPages*page/8]
	*cell = mix(*cell, s.n)
	at := s.n % ballastPages * page
	s.sum = mix(s.sum, mix(*cell, xxh3.Hash(s.ballast[at:at+page])))
	return s.n, s.sum
}

func mix(a, b uint64) uint64 {
	return xxh3.Hash(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, a), b))
}

func work() {
	s := newState()
	for {
		n, sum := s.step()
		fmt.Fprintf(os.Stdout, "<%d %016x>\n", n, sum)
		time.Sleep(500 * time.Microsecond) //nolint:forbidigo // its work
	}
}
