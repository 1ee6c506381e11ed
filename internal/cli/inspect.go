package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
	"stasis/internal/image"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect DIR",
		Short: "Show what is in a checkpoint",
		Long: `Shows the process tree, memory by kind, open files, sockets, sizes by stream and codec, and the figures of the dump. DIR is a
folder or the name of a checkpoint in the default folder. Only the manifest and the index are read, whatever the size.`,
		Example:           "  stasis inspect before-update\n  stasis inspect /srv/one -o json",
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE:              func(_ *cobra.Command, args []string) error { return a.runInspect(args[0]) },
	}
}

// inspectReport is the result for programs.
type inspectReport struct {
	Dir      string          `json:"dir"`
	Manifest *image.Manifest `json:"manifest"`
	Shards   []shardUse      `json:"shards"`
	Codecs   []codecUse      `json:"codecs"` // of the blocks of memory
	Files    []stateFile     `json:"files"`  // CRIU's images
}

// shardUse says what is in a shard.
type shardUse struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes of the file
	Blocks int    `json:"blocks"` // of memory, that are still wanted
	Raw    int64  `json:"raw"`    // bytes of these before compression
	Stored int64  `json:"stored"` // and after
}

// codecUse says how many blocks have a codec.
type codecUse struct {
	Codec  string `json:"codec"`
	Blocks int    `json:"blocks"`
	Raw    int64  `json:"raw"`
	Stored int64  `json:"stored"`
}

type stateFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

func (a *app) runInspect(arg string) error {
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	checkpoint, err := chain.OpenIndex(dir)
	if err != nil {
		return err
	}
	defer checkpoint.Close()
	report := inspect(checkpoint)
	if report.Dir, err = filepath.Abs(dir); err != nil {
		report.Dir = dir
	}
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if err := report.show(a.out); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// inspect sums the index up.
func inspect(c *image.Checkpoint) *inspectReport {
	m := c.Manifest()
	r := &inspectReport{Manifest: m}
	for _, s := range m.Shards {
		r.Shards = append(r.Shards, shardUse{Name: s.Name, Size: s.Size})
	}
	codecs := make(map[string]*codecUse)
	for i := range c.Blocks() {
		b := c.Block(i)
		name := b.Codec.String()
		use := codecs[name]
		if use == nil {
			use = &codecUse{Codec: name}
			codecs[name] = use
		}
		use.Blocks++
		use.Raw += int64(b.Raw)
		use.Stored += int64(b.Stored)
		if b.Origin == 0 && b.Shard < len(r.Shards) {
			shard := &r.Shards[b.Shard]
			shard.Blocks++
			shard.Raw += int64(b.Raw)
			shard.Stored += int64(b.Stored)
		}
	}
	for _, use := range codecs {
		r.Codecs = append(r.Codecs, *use)
	}
	slices.SortFunc(r.Codecs, func(a, b codecUse) int { return strings.Compare(a.Codec, b.Codec) })
	for _, f := range c.Files() {
		r.Files = append(r.Files, stateFile{f.Name, f.Size})
	}
	return r
}

// treeRows lists processes with their descendants indented below them.
func treeRows(m *image.Manifest) [][]string {
	children := make(map[int][]image.Process)
	known := make(map[int]bool)
	for _, p := range m.Processes {
		known[p.PID] = true
	}
	for _, p := range m.Processes {
		parent := p.PPID
		if !known[parent] || parent == p.PID || p.PID == m.RootPID {
			parent = 0 // the root, and whatever hangs nowhere
		}
		children[parent] = append(children[parent], p)
	}
	var rows [][]string
	var add func(parent, depth int)
	add = func(parent, depth int) {
		for _, p := range children[parent] {
			command := strings.Join(p.Cmdline, " ")
			if command == "" {
				command = "[" + p.Comm + "]"
			}
			rows = append(rows, []string{
				strconv.Itoa(p.PID), strconv.Itoa(p.PPID), p.State, strconv.Itoa(len(p.Threads)), strings.Repeat("  ", depth) + shorten(command, 80),
			})
			if len(rows) <= len(m.Processes) { // a damaged tree can be a circle
				add(p.PID, depth+1)
			}
		}
	}
	add(0, 0)
	return rows
}

func shorten(s string, limit int) string {
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return s
}
