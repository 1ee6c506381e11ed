package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run of the benchmark found, as it is written to bench.json.
type report struct {
	Taken   time.Time `json:"taken"`
	Small   bool      `json:"small"` // made at small size: nothing to judge speed by
	Machine machine   `json:"machine"`
	Rows    []*row    `json:"rows"`
}

// cells are the columns of a row, for people.
func (r *row) cells() []string {
	ours, other, ratio := "–", "–", "–"
	if !r.Ours.empty() {
		ours = r.Unit.format(r.Ours.Median)
	}
	if len(r.Ours.Runs) > 1 {
		ours += " (" + r.Unit.format(r.Ours.Worst) + ")"
	}
	if !r.Other.empty() {
		other = r.Unit.format(r.Other.Median)
		if r.Beside != besideCRIU {
			other = r.Beside + " " + other
		}
	}
	if r.Ratio > 0 {
		ratio = three(r.Ratio) + " ×"
	}
	var want, verdict []string
	for _, c := range r.Checks {
		want = append(want, c.Want)
		if c.Met {
			verdict = append(verdict, "met")
		} else {
			verdict = append(verdict, fmt.Sprintf("missed by %.0f %%", 100*c.Off))
		}
	}
	what := r.What
	if r.Note != "" {
		what += " (" + r.Note + ")"
	}
	return []string{what, ours, other, ratio, strings.Join(want, ", "), strings.Join(verdict, ", ")}
}

// header are the names of the columns; the number in brackets is the worst run.
var header = []string{"measured", "Stasis (worst)", "CRIU", "ratio", "target", ""}

// table writes the report for a terminal.
func (r *report) table(w io.Writer) error {
	tabs := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tabs, strings.Join(header, "\t"))
	for _, row := range r.Rows {
		fmt.Fprintln(tabs, strings.Join(row.cells(), "\t"))
	}
	return tabs.Flush()
}

// markdown is the report for the README.
func (r *report) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "| %s |\n|---|--:|--:|--:|---|---|\n", strings.Join(header, " | "))
	for _, row := range r.Rows {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(row.cells(), " | "))
	}
	fmt.Fprintf(&text, "\nTaken %s on %s.\n", r.Taken.Format("2 January 2006"), r.Machine.describe())
	return text.String()
}

func (m *machine) describe() string {
	return fmt.Sprintf("%d CPUs (%s), %.0f GiB, Linux %s, CRIU %s, Stasis %s", m.CPUs, m.CPU, m.MemoryGiB, m.Kernel, m.CRIU, m.Stasis)
}

func (r *report) json() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	return append(text, '\n'), err
}

// The block of the README that is the benchmark's.
const (
	blockBegin = "<!-- bench:begin -->"
	blockEnd   = "<!-- bench:end -->"
)

// updateReadme puts the table between the two marks of a file.
func (r *report) updateReadme(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(blockBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(blockEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %s and %s for the table: add them", path, blockBegin, blockEnd)
	}
	block := blockBegin + "\n" + r.markdown() + blockEnd
	return os.WriteFile(path, bytes.Join([][]byte{before, after}, []byte(block)), 0o644)
}

// write writes bench.json and bench.svg into a folder.
func (r *report) write(dir string) error {
	text, err := r.json()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "bench.json"), text, 0o644)
	if picture := r.picture(); picture != "" {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "bench.svg"), []byte(picture), 0o644))
	}
	return err
}
