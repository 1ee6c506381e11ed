package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stasis"
	"stasis/internal/require"
)

// iptablesLocks lists the rules of iptables that have an address of the tree.
func (s *scene) iptablesLocks() (rules []string) {
	s.t.Helper()
	out, err := exec.Command(require.Program(s.t, "iptables"), "-w", "-S").CombinedOutput()
	if err != nil {
		s.t.Fatalf("iptables: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, s.address+"/") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

// TestNetworkIsUnlocked: CRIU dies while it has the connections of the tree
// locked, alone or together with Stasis. The tree talks over them afterwards.
func TestNetworkIsUnlocked(t *testing.T) {
	for _, method := range []string{"nftables", "iptables"} {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/both=%t", method, both), func(t *testing.T) {
				s := newScene(t)
				require.Program(t, "iptables")
				t.Cleanup(func() {
					for _, rule := range s.iptablesLocks() {
						_ = exec.Command("iptables", append([]string{"-w", "-D"}, strings.Fields(rule)[1:]...)...).Run()
					}
				})
				locks := s.networkLocks
				if method == "iptables" {
					locks = s.iptablesLocks
				}
				point := string(stasis.StepState)
				w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterRun, Engine: stasis.EngineBlind, NetworkLock: method, Wait: []string{point}})
				w.reach(point)
				if len(locks()) == 0 {
					t.Fatal("CRIU has locked nothing: the test would show nothing")
				}
				w.killCRIU()
				if both {
					w.kill()
				} else {
					w.goOn()
					if o := w.end(); o.Err == "" {
						t.Error("the dump succeeded without CRIU")
					}
				}
				within(t, "the network is unlocked", func() error {
					if left := locks(); len(left) > 0 {
						return fmt.Errorf("it is locked by %q", left)
					}
					return nil
				})
				s.nothingLeft(w)
				s.unharmed()
			})
		}
	}
}

// TestNoEmptyTableIsLeft: CRIU dies when it has made the table for its locks, and
// has written its name nowhere.
func TestNoEmptyTableIsLeft(t *testing.T) {
	s := newScene(t)
	point := string(stasis.StepFreeze)
	w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterRun, Engine: stasis.EngineBlind, Wait: []string{point}})
	w.reach(point)
	table := w.lockTable()
	if !slices.Contains(tables(t), table) {
		t.Fatalf("CRIU has made no table %s: the test would show nothing", table)
	}
	w.killCRIU()
	w.goOn()
	w.end()
	within(t, "the table is gone", func() error {
		if slices.Contains(tables(t), table) {
			return fmt.Errorf("%s is there", table)
		}
		return nil
	})
	s.unharmed()
}

// lockTable is the name of the table that the worker's CRIU locks connections in.
// Stasis has chosen it, and calls the memory that it shares with CRIU after it.
func (w *worker) lockTable() string {
	w.t.Helper()
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.cmd.Process.Pid))
	for _, fd := range fds {
		path, _ := os.Readlink(fd)
		if name, ok := strings.CutPrefix(path, "/memfd:stasis-blind-"); ok {
			return strings.TrimSuffix(name, " (deleted)")
		}
	}
	w.t.Fatal("the worker shares no memory with CRIU")
	return ""
}
