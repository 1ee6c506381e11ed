package faults

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"stasis"
	"stasis/internal/require"
)

// TestOwnNetworkIsUnlocked is TestNetworkIsUnlocked for a tree with a network of
// its own, which CRIU locks as a whole.
func TestOwnNetworkIsUnlocked(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, program := range []string{"ip", "nsenter", "nft", "iptables"} {
		require.Program(t, program)
	}
	for _, method := range []string{"nftables", "iptables"} {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/both=%t", method, both), func(t *testing.T) {
				cmd := exec.Command("sleep", "1000")
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
				pid := cmd.Process.Pid
				point := string(stasis.StepState)
				w := start(t, plan{PID: pid, Dir: t.TempDir() + "/checkpoint", After: stasis.AfterRun, Engine: stasis.EngineBlind, NetworkLock: method, Wait: []string{point}})
				w.reach(point)
				if locks := locksIn(t, pid); len(locks) == 0 {
					t.Fatal("CRIU has locked nothing: the test would show nothing")
				}
				w.killCRIU()
				if both {
					w.kill()
				} else {
					w.goOn()
					w.end()
				}
				within(t, "the network is unlocked", func() error {
					if locks := locksIn(t, pid); len(locks) > 0 {
						return fmt.Errorf("it is locked by %q", locks)
					}
					return nil
				})
			})
		}
	}
}

// locksIn lists what CRIU has in the firewall of a process' network.
func locksIn(t *testing.T, pid int) (locks []string) {
	t.Helper()
	for _, command := range [][]string{{"iptables", "-w", "-S"}, {"ip6tables", "-w", "-S"}, {"nft", "list", "tables"}} {
		out, err := exec.Command("nsenter", append([]string{"--net", "--target", fmt.Sprint(pid)}, command...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "CRIU") {
				locks = append(locks, strings.TrimSpace(line))
			}
		}
	}
	return locks
}
