package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"stasis/internal/image"
)

// mostRows is how many files or sockets are shown. Programs get all of them.
const mostRows = 40

// show writes the report for people: tables, each under its title.
func (r inspectReport) show(w io.Writer) error {
	m := r.Manifest
	name := m.Name
	if name == "" {
		name = m.ID
	}
	fmt.Fprintf(w, "%s\n", printable(name))
	if err := table(w, nil, r.general()); err != nil {
		return err
	}
	for _, part := range []struct {
		title   string
		heading []string
		rows    [][]string
	}{
		{"processes", []string{"PID", "PPID", "STATE", "THREADS", "COMMAND"}, treeRows(m)},
		{"memory", []string{"KIND", "MAPPINGS", "SIZE"}, memoryRows(m)},
		{"files", []string{"PID", "FD", "FILE"}, capped(fileRows(m))},
		{"sockets", []string{"PID", "FD", "PROTOCOL", "LOCAL", "REMOTE", "STATE"}, capped(socketRows(m))},
		{"streams", []string{"FILE", "SIZE", "BLOCKS", "MEMORY", "STORED", "RATIO"}, r.shardRows()},
		{"compression", []string{"CODEC", "BLOCKS", "MEMORY", "STORED", "RATIO"}, r.codecRows()},
		{"copies", []string{"ROUND", "PAGES", "SIZE", "TIME", "RATE"}, roundRows(m)},
	} {
		if len(part.rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", part.title)
		if err := table(w, part.heading, part.rows); err != nil {
			return err
		}
	}
	return nil
}

func (r inspectReport) general() [][]string {
	m, g := r.Manifest, &r.Manifest.Figures
	var state int64
	for _, f := range r.Files {
		state += f.Size
	}
	rows := [][]string{
		{"  folder", r.Dir},
		{"  id", m.ID},
		{"  kind", m.Kind},
		{"  created", m.Created.Local().Format(time.DateTime) + " by Stasis " + m.Stasis},
		{"  host", printable(hostLine(m.Host))},
		{"  engine", m.Engine},
	}
	if m.Kind != image.KindPreDump { // which only copies memory
		rows = append(rows, []string{"  paused for", span(micros(g.PauseUS))})
	}
	rows = append(rows,
		[]string{"  dump took", span(micros(g.DumpUS))},
		[]string{"  memory", fmt.Sprintf("%s, %s of it zeros", inBytes(g.BytesMemory), inBytes(g.ZeroPages*image.PageSize))})
	if len(r.Files) > 0 {
		rows = append(rows, []string{"  state", fmt.Sprintf("%s in %s", inBytes(state), plural(len(r.Files), "image"))})
	}
	stored := fmt.Sprintf("%s (%s)", inBytes(g.BytesStored), percent(g.BytesStored, g.BytesMemory+g.BytesFiles))
	if g.BytesSuperseded > 0 {
		stored += fmt.Sprintf(", %s of it of pages that were copied again later", inBytes(g.BytesSuperseded))
	}
	rows = append(rows, []string{"  stored", stored})
	if m.Parent != "" {
		rows = append(rows, []string{"  parent", parentLine(m)})
	}
	if r.Unusable != "" {
		rows = append(rows, []string{"  note", printable(r.Unusable)})
	}
	return rows
}

// parentLine is the id of the parent, and where it was at the time of the dump.
func parentLine(m *image.Manifest) string {
	for _, o := range m.Origins {
		if o.ID == m.Parent && o.Path != "" {
			return fmt.Sprintf("%s (%s)", m.Parent, printable(o.Path))
		}
	}
	return m.Parent
}

// memoryRows sums the mappings of all processes up by kind, largest first.
func memoryRows(m *image.Manifest) [][]string {
	kinds := make(map[string]image.Mapping)
	for _, p := range m.Processes {
		for kind, of := range p.Mappings {
			sum := kinds[kind]
			sum.Count += of.Count
			sum.Bytes += of.Bytes
			kinds[kind] = sum
		}
	}
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(kinds[b].Bytes, kinds[a].Bytes), cmp.Compare(a, b))
	})
	var rows [][]string
	for _, name := range names {
		rows = append(rows, []string{name, strconv.Itoa(kinds[name].Count), inBytes(kinds[name].Bytes)})
	}
	return rows
}

func fileRows(m *image.Manifest) [][]string {
	var rows [][]string
	for _, p := range m.Processes {
		for _, f := range p.Files {
			rows = append(rows, []string{strconv.Itoa(p.PID), strconv.Itoa(f.FD), f.Path})
		}
	}
	return rows
}

func socketRows(m *image.Manifest) [][]string {
	var rows [][]string
	for _, p := range m.Processes {
		for _, s := range p.Sockets {
			rows = append(rows, []string{strconv.Itoa(p.PID), strconv.Itoa(s.FD), s.Protocol, s.Local, s.Remote, s.State})
		}
	}
	return rows
}

// capped leaves out what nobody would read.
func capped(rows [][]string) [][]string {
	if len(rows) <= mostRows {
		return rows
	}
	return append(rows[:mostRows:mostRows], []string{"…", "", fmt.Sprintf("and %d more: -o json lists all", len(rows)-mostRows)})
}

func (r inspectReport) shardRows() [][]string {
	var rows [][]string
	for _, s := range r.Shards {
		rows = append(rows, []string{s.Name, inBytes(s.Size), strconv.Itoa(s.Blocks), inBytes(s.Raw), inBytes(s.Stored), percent(s.Stored, s.Raw)})
	}
	return rows
}

func (r inspectReport) codecRows() [][]string {
	var rows [][]string
	for _, c := range r.Codecs {
		rows = append(rows, []string{c.Codec, strconv.Itoa(c.Blocks), inBytes(c.Raw), inBytes(c.Stored), percent(c.Stored, c.Raw)})
	}
	return rows
}

// roundRows lists the copies of the memory. The last of a dump was made while the tree was frozen; a pre-dump freezes nothing.
func roundRows(m *image.Manifest) [][]string {
	var rows [][]string
	for i, round := range m.Figures.Rounds {
		name := strconv.Itoa(i + 1)
		if i == len(m.Figures.Rounds)-1 && m.Kind != image.KindPreDump {
			name = "frozen"
		}
		took := micros(round.US)
		rows = append(rows, []string{name, strconv.FormatInt(round.Pages, 10), inBytes(round.Bytes), span(took), rate(round.Bytes, took)})
	}
	return rows
}

// hostLine tells of the machine of a dump, of which an imported checkpoint does not know everything.
func hostLine(h image.Host) string {
	known := func(text string) string {
		if text == "" {
			return "(unknown)"
		}
		return text
	}
	return fmt.Sprintf("%s, Linux %s, %s, CRIU %s", known(h.Hostname), known(h.Kernel), known(h.Arch), known(h.CRIUVersion))
}
