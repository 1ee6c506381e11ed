package chain

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// All, as a number of a Policy, means every one.
const All = -1

// Policy says which checkpoints Prune keeps: those that any of its rules keeps. Rules that are 0 keep nothing. As in restic's forget,
// of each of the last N hours (days …) that have a checkpoint the newest is kept, and, as long as a rule has not found N, the oldest
// of all.
type Policy struct {
	Last    int // the newest N
	Hourly  int
	Daily   int
	Weekly  int // weeks begin on Monday
	Monthly int
	Yearly  int
	Within  Span // all that are not older than this, counted from the newest
	// MaxBytes, if not 0, is what the folder may take on disk: the oldest go until it takes no more. The newest of each program stays.
	MaxBytes int64
}

// Empty says whether it has no rule that keeps anything.
func (p Policy) Empty() bool {
	return p.Last == 0 && p.Hourly == 0 && p.Daily == 0 && p.Weekly == 0 && p.Monthly == 0 && p.Yearly == 0 && p.Within.zero()
}

// Keep returns, for each of some times, why the policy keeps it; nothing says that it goes. MaxBytes is not looked at. The times may
// be in any order; hours and days are those of their own zones.
func (p Policy) Keep(times []time.Time) [][]string {
	reasons := make([][]string, len(times))
	order := make([]int, len(times)) // the newest first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return times[b].Compare(times[a]) })
	rules := p.rules()
	for n, i := range order {
		at, oldest := times[i], n == len(order)-1
		if !p.Within.zero() && at.After(p.Within.before(times[order[0]])) {
			reasons[i] = append(reasons[i], "within "+p.Within.String())
		}
		for k := range rules {
			if why := rules[k].keeps(at, n, oldest); why != "" {
				reasons[i] = append(reasons[i], why)
			}
		}
	}
	return reasons
}

// rule keeps the newest of each period, as long as left is not 0.
type rule struct {
	left   int
	period func(t time.Time, n int) string
	name   string
	last   string // period of the one that was kept last
}

func (p Policy) rules() []rule {
	layout := func(layout string) func(time.Time, int) string {
		return func(t time.Time, _ int) string { return t.Format(layout) }
	}
	week := func(t time.Time, _ int) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%d-%02d", year, week)
	}
	return []rule{
		{left: p.Last, period: func(_ time.Time, n int) string { return strconv.Itoa(n) }, name: "last"},
		{left: p.Hourly, period: layout("2006-01-02T15"), name: "hourly"},
		{left: p.Daily, period: layout(time.DateOnly), name: "daily"},
		{left: p.Weekly, period: week, name: "weekly"},
		{left: p.Monthly, period: layout("2006-01"), name: "monthly"},
		{left: p.Yearly, period: layout("2006"), name: "yearly"},
	}
}

// keeps says why the rule keeps a checkpoint, or "". It is asked about the newest first.
func (r *rule) keeps(t time.Time, n int, oldest bool) string {
	if r.left == 0 {
		return ""
	}
	period := r.period(t, n)
	why := r.name
	if period == r.last {
		if !oldest {
			return ""
		}
		why = "oldest " + r.name
	}
	r.last = period
	if r.left > 0 {
		r.left--
	}
	return why
}

// Span is a time as people say it: months differ in length.
type Span struct{ Years, Months, Days, Hours, Minutes int }

var spanPart = regexp.MustCompile(`^([0-9]{1,6})(y|min|m|d|h)`)

// ParseSpan reads a time such as 7d, 1y6m or 2d12h: y for years, m for months, d for days, h for hours, min for minutes.
func ParseSpan(text string) (Span, error) {
	var s Span
	rest := text
	for rest != "" {
		part := spanPart.FindStringSubmatch(rest)
		if part == nil {
			return Span{}, fmt.Errorf("%q is no time: write it as 7d, 1y6m or 2d12h (years, months, days, hours; min for minutes)", text)
		}
		n, err := strconv.Atoi(part[1])
		if err != nil {
			return Span{}, err
		}
		switch part[2] {
		case "y":
			s.Years += n
		case "m":
			s.Months += n
		case "d":
			s.Days += n
		case "h":
			s.Hours += n
		case "min":
			s.Minutes += n
		}
		rest = rest[len(part[0]):]
	}
	return s, nil
}

func (s Span) String() string {
	text := ""
	for _, part := range []struct {
		n    int
		unit string
	}{{s.Years, "y"}, {s.Months, "m"}, {s.Days, "d"}, {s.Hours, "h"}, {s.Minutes, "min"}} {
		if part.n > 0 {
			text += strconv.Itoa(part.n) + part.unit
		}
	}
	return text
}

func (s Span) zero() bool { return s == Span{} }

// before is the time that lies so long before t.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours)*time.Hour - time.Duration(s.Minutes)*time.Minute)
}
