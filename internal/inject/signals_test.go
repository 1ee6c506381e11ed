package inject

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"stasis/internal/subject"
)

// TestTheSignalsStayAsTheyAre compares which signals the target ignores
// and handles. A Go program handles SIGTRAP.
func TestTheSignalsStayAsTheyAre(t *testing.T) {
	s := subject.Start(t, "busy")
	s.Hear()
	before := signalsOf(t, s.PID)
	if err := madeIn(s.PID); err != nil {
		t.Fatal(err)
	}
	if after := signalsOf(t, s.PID); after != before {
		t.Errorf("the signals were\n%s\nand are\n%s", before, after)
	}
}

func signalsOf(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "SigIgn") || strings.HasPrefix(line, "SigCgt") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
