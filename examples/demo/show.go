package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"stasis/internal/proc"
)

func title(text string) { fmt.Printf("\n%s\n%s\n", text, strings.Repeat("─", len(text))) }

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// command shows a command as it could be typed.
func command(name string, args ...string) {
	here, err := os.Getwd()
	line := "$ " + name
	for _, arg := range args {
		if short, relErr := filepath.Rel(here, arg); err == nil && relErr == nil && filepath.IsAbs(arg) {
			arg = short
		}
		line += " " + arg
	}
	fmt.Printf("\n%s\n", line)
}

// shownFiles is how many files of a checkpoint are listed.
const shownFiles = 5

// listFolder shows the largest files of a checkpoint and returns the size of all.
func listFolder(dir string) (total int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var others, othersBytes int64
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return 0, err
		}
		total += info.Size()
		if strings.HasPrefix(entry.Name(), "img-") || strings.HasPrefix(entry.Name(), "pages-") || len(entries) <= shownFiles {
			fmt.Printf("  %-16s %9.1f MiB\n", entry.Name(), mib(info.Size()))
			continue
		}
		others++
		othersBytes += info.Size()
	}
	if others > 0 {
		fmt.Printf("  %-16s %9.1f MiB\n", fmt.Sprintf("%d more", others), mib(othersBytes))
	}
	return total, nil
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// residentBytes is the memory of a process that a checkpoint has to hold.
func residentBytes(pid int) (int64, error) {
	maps, err := proc.Smaps(pid)
	var total uint64
	for _, m := range maps {
		total += m.AnonBytes
	}
	return int64(total), err
}

// short prints a time with three digits.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// sideBySide prints the figures of both ways and how many times better ours is.
func sideBySide(w io.Writer, ours, criu figures) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	times := func(a, b float64) string { return fmt.Sprintf("%.1f ×", b/a) }
	fmt.Fprintln(t, "\tStasis\tCRIU\t\t")
	for _, line := range []struct {
		what string
		a, b time.Duration
	}{
		{"pause, seen by the program", ours.pause, criu.pause},
		{"dump, until it is safe on disk", ours.dump, criu.dump},
		{"restore, from the page cache", ours.restore, criu.restore},
	} {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", line.what, short(line.a), short(line.b), times(line.a.Seconds(), line.b.Seconds()))
	}
	fmt.Fprintf(t, "memory of the program\t%.0f MiB\t%.0f MiB\t\t\n", mib(ours.memory), mib(criu.memory))
	fmt.Fprintf(t, "checkpoint\t%.0f MiB\t%.0f MiB\t%s\t\n", mib(ours.stored), mib(criu.stored), times(float64(ours.stored), float64(criu.stored)))
	fmt.Fprintf(t, "checkpoint / memory\t%.2f\t%.2f\t\t\n", ratio(ours.stored, ours.memory), ratio(criu.stored, criu.memory))
	return t.Flush()
}

func ratio(a, b int64) float64 { return float64(a) / float64(b) }
