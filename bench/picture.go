package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Sizes of the picture in pixels.
const (
	pictureWidth = 920
	plotLeft     = 330
	plotRight    = 790 // the rest is for the numbers at the ends of the bars and the ratios
	plotTop      = 74
	barHeight    = 12
	rowHeight    = 38
)

// pictureStyle follows the reader's choice of a light or a dark page.
const pictureStyle = `
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 }
.small { font-size: 12px; fill: #57606a }
.grid { stroke: #d0d7de; stroke-width: 1 }
.ours { fill: #1a7f64 } .criu { fill: #a9b1ba }
.back { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d }
.ours { fill: #3fb68b } .criu { fill: #59636e } .back { fill: #0d1117 }
}`

// pair is what the picture shows of a row: times in seconds.
type pair struct {
	what       string
	ours, criu float64
}

// pictured are the rows that are times, or can be told as times, with CRIU's
// beside.
func (r *report) pictured() []pair {
	var list []pair
	for _, row := range r.Rows {
		if row.Beside != besideCRIU || row.Ratio <= 0 {
			continue
		}
		ours, criu := row.Ours.Median, row.Other.Median
		switch {
		case row.Unit == bytesPerSecond && row.Bytes > 0:
			ours, criu = float64(row.Bytes)/ours, float64(row.Bytes)/criu
		case row.Unit != seconds:
			continue
		}
		list = append(list, pair{row.What, ours, criu})
	}
	return list
}

// picture draws pairs of bars, Stasis's above CRIU's; empty where there is nothing
// to draw. The scale is logarithmic,
// with a line at each power of ten: linear bars of a pause of 20 ms beside one
// of 3 s could not be seen.
func (r *report) picture() string {
	rows := r.pictured()
	if len(rows) == 0 {
		return ""
	}
	least, most := math.Inf(1), math.Inf(-1)
	for _, row := range rows {
		least = min(least, row.ours, row.criu)
		most = max(most, row.ours, row.criu)
	}
	// Half a power of ten below the least, so that its bar has a length.
	low, high := math.Floor(math.Log10(least)-0.3), math.Ceil(math.Log10(most))
	at := func(v float64) float64 {
		return plotLeft + (plotRight-plotLeft)*(math.Log10(v)-low)/(high-low)
	}
	bottom := plotTop + rowHeight*len(rows)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="Stasis and CRIU, times compared">`, pictureWidth, bottom+34)
	fmt.Fprintf(&b, "<style>%s</style>\n<rect class=\"back\" width=\"100%%\" height=\"100%%\" rx=\"6\"/>\n", pictureStyle)
	write := func(x, y float64, class, anchor, text string) {
		fmt.Fprintf(&b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, html.EscapeString(text))
	}
	write(20, 30, "title", "start", "Stasis and plain CRIU, same programs, same run")
	fmt.Fprintf(&b, `<rect class="ours" x="20" y="43" width="12" height="12" rx="2"/><rect class="criu" x="90" y="43" width="12" height="12" rx="2"/>`+"\n")
	write(37, 54, "small", "start", "Stasis")
	write(107, 54, "small", "start", "CRIU")
	write(plotLeft, 54, "small", "start", "time on a logarithmic scale: each line is ten times the one before")
	for power := low; power <= high; power++ {
		x := at(math.Pow(10, power))
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" x2="%.1[1]f" y1="%d" y2="%d"/>`+"\n", x, plotTop-4, bottom)
		write(x, float64(bottom+18), "small", "middle", tick(power))
	}
	for i, row := range rows {
		y := float64(plotTop + rowHeight*i + 4)
		write(plotLeft-12, y+barHeight+5, "", "end", row.what)
		for j, bar := range []struct {
			class string
			value float64
		}{{"ours", row.ours}, {"criu", row.criu}} {
			top := y + float64(j*(barHeight+2))
			fmt.Fprintf(&b, `<rect class="%s" x="%d" y="%.1f" width="%.1f" height="%d" rx="2"/>`+"\n", bar.class, plotLeft, top, at(bar.value)-plotLeft, barHeight)
			write(at(bar.value)+6, top+barHeight-2, "small", "start", seconds.format(bar.value))
		}
		write(pictureWidth-16, y+barHeight+5, "", "end", three(row.criu/row.ours)+" ×")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// tick is the name of a power of ten of a second.
func tick(power float64) string {
	switch v := math.Pow(10, power); {
	case power < -3:
		return fmt.Sprintf("%.3g µs", v*1e6)
	case power < 0:
		return fmt.Sprintf("%.3g ms", v*1e3)
	default:
		return fmt.Sprintf("%.3g s", v)
	}
}
