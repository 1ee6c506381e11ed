package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sample() *report {
	pause := &row{ID: "pause/4GiB", What: "longest pause, 4 GiB", Unit: seconds, Beside: besideCRIU}
	pause.Ours.Runs = []float64{0.030, 0.020, 0.050}
	pause.Other.Runs = []float64{2, 4}
	pause.finish()
	pause.within(0.025)
	pause.times(60)
	dump := &row{ID: "dump/4GiB", What: "dump <to> disk", Unit: bytesPerSecond, Beside: besideCRIU, Bytes: 4 << 30}
	dump.Ours.Runs, dump.Other.Runs = []float64{3e9}, []float64{1e9}
	dump.finish()
	dump.times(2)
	memory := &row{ID: "memory", What: "own memory", Unit: bytesUsed}
	memory.Ours.Runs = []float64{100 << 20}
	memory.finish()
	return &report{Rows: []*row{pause, dump, memory}}
}

func TestTargets(t *testing.T) {
	r := sample().Rows
	if got := r[0].Ours; got.Median != 0.030 || got.Worst != 0.050 {
		t.Errorf("median and worst: %+v", got)
	}
	if got := r[0].Ratio; got != 100 {
		t.Errorf("ratio of 3 s to 30 ms: %v", got)
	}
	want := []check{{"≤ 25.0 ms", false, 0.2}, {"≤ 1/60 of CRIU", true, 0}}
	for i, c := range r[0].Checks {
		if c.Want != want[i].Want || c.Met != want[i].Met || c.Off < want[i].Off-1e-9 || c.Off > want[i].Off+1e-9 {
			t.Errorf("check %d: %+v, want %+v", i, c, want[i])
		}
	}
	if c := r[1].Checks[0]; !c.Met || c.Want != "2.00 × CRIU" && c.Want != "2 × CRIU" {
		t.Errorf("three times CRIU's rate: %+v", c)
	}
}

func TestReadmeBlockIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(path, []byte("above\n"+blockBegin+"\nold\n"+blockEnd+"\nbelow\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time must find the marks again
		if err := sample().updateReadme(path); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"above\n", "\nbelow\n", "| longest pause, 4 GiB | 30.0 ms (50.0 ms) | 3.00 s | 100 × |", "missed by 20 %, met"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") || strings.Count(string(text), blockBegin) != 1 {
		t.Errorf("the block was not replaced:\n%s", text)
	}
	if err := os.WriteFile(path, []byte("no marks"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := sample().updateReadme(path); err == nil {
		t.Error("a file without the marks was changed")
	}
}

func TestPictureIsXML(t *testing.T) {
	picture := sample().picture()
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
	}
	if got := strings.Count(picture, `class="ours"`); got != 3 { // the key and two rows
		t.Errorf("%d bars of ours, want 2 and the key", got)
	}
}

func TestPictureOfNothing(t *testing.T) {
	if picture := (&report{}).picture(); picture != "" {
		t.Errorf("drawn: %s", picture)
	}
}

func TestAnswers(t *testing.T) {
	a, err := parseAnswer("note 3 gap_us=81 jump_end_us=17800021 written=4")
	if err != nil || a.gap.Microseconds() != 81 || a.resumed.UnixMicro() != 17800021 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := parseAnswer("bad 3 mem: page 0x1 is zero"); err == nil {
		t.Error("wrong memory was taken for right")
	}
}
