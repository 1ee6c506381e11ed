package chain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"
)

// at reads times of 2026, such as 03-01 12:30.
func at(t *testing.T, list ...string) []time.Time {
	t.Helper()
	out := make([]time.Time, len(list))
	for i, text := range list {
		var err error
		if out[i], err = time.Parse("2006-01-02 15:04", "2026-"+text); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestPolicy(t *testing.T) {
	times := at(t,
		"01-01 08:00", // 0, a Thursday
		"01-05 08:00", // 1, Monday of the week after
		"01-31 23:50", // 2
		"02-01 00:10", // 3
		"02-28 10:00", // 4
		"03-01 09:00", // 5, a Sunday
		"03-02 11:05", // 6
		"03-02 11:55", // 7
		"03-02 12:01", // 8
	)
	for _, test := range []struct {
		policy Policy
		keep   []int
	}{
		{Policy{Last: 1}, []int{8}},
		{Policy{Last: 3}, []int{6, 7, 8}},
		{Policy{Last: 100}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{Policy{Last: All}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{Policy{Hourly: 2}, []int{7, 8}},
		{Policy{Hourly: 3}, []int{5, 7, 8}}, // hours without a checkpoint don't count
		{Policy{Daily: 2}, []int{5, 8}},
		{Policy{Daily: 4}, []int{3, 4, 5, 8}},
		{Policy{Weekly: 1}, []int{8}},
		{Policy{Weekly: 2}, []int{5, 8}}, // Sunday is the end of its week
		{Policy{Weekly: 4}, []int{1, 3, 5, 8}},
		{Policy{Monthly: 2}, []int{4, 8}},
		{Policy{Monthly: 3}, []int{2, 4, 8}},
		{Policy{Monthly: 4}, []int{0, 2, 4, 8}}, // and the oldest, as the rule has one left
		{Policy{Yearly: 1}, []int{8}},
		{Policy{Yearly: 2}, []int{0, 8}},
		{Policy{Within: Span{Minutes: 30}}, []int{7, 8}},
		{Policy{Within: Span{Hours: 1}}, []int{6, 7, 8}},
		{Policy{Within: Span{Days: 1}}, []int{6, 7, 8}},
		{Policy{Within: Span{Days: 1, Hours: 4}}, []int{5, 6, 7, 8}},
		{Policy{Within: Span{Months: 1, Minutes: 1}}, []int{4, 5, 6, 7, 8}},
		{Policy{Within: Span{Years: 1}}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{Policy{Last: 1, Daily: 2, Monthly: 2}, []int{4, 5, 8}},
		{Policy{}, nil},
	} {
		if got := kept(test.policy, times); !slices.Equal(got, test.keep) {
			t.Errorf("%+v keeps %v and should keep %v", test.policy, got, test.keep)
		}
		// Whatever order they come in.
		reversed := slices.Clone(times)
		slices.Reverse(reversed)
		got := kept(test.policy, reversed)
		for i := range got {
			got[i] = len(times) - 1 - got[i]
		}
		if slices.Sort(got); !slices.Equal(got, test.keep) {
			t.Errorf("%+v keeps %v of the same in another order and should keep %v", test.policy, got, test.keep)
		}
	}
	reasons := Policy{Last: 1, Daily: All, Monthly: 4, Within: Span{Hours: 1}}.Keep(times)
	if got := fmt.Sprint(reasons[8], reasons[7], reasons[0]); got != "[within 1h last daily monthly] [within 1h] [daily oldest monthly]" {
		t.Errorf("the reasons are %s", got)
	}
	if !(Policy{MaxBytes: 5}).Empty() || (Policy{Within: Span{Hours: 1}}).Empty() {
		t.Error("which policy is empty")
	}
	if len((Policy{Last: 1}).Keep(nil)) != 0 {
		t.Error("something is kept of nothing")
	}
}

func kept(p Policy, times []time.Time) (list []int) {
	for i, why := range p.Keep(times) {
		if len(why) > 0 {
			list = append(list, i)
		}
	}
	return list
}

// TestPolicyKeepsTheNewest sees that every rule keeps the newest, and no more than it may.
func TestPolicyKeepsTheNewest(t *testing.T) {
	check := func(hours []uint16, n uint8) bool {
		if len(hours) == 0 {
			return true
		}
		var times []time.Time
		newest := 0
		for i, h := range hours {
			times = append(times, time.Unix(int64(h)*1800, 0).UTC())
			if h > hours[newest] {
				newest = i
			}
		}
		limit := int(n%5) + 1
		for _, p := range []Policy{{Last: limit}, {Hourly: limit}, {Daily: limit}, {Weekly: limit}, {Monthly: limit}, {Yearly: limit}} {
			list := kept(p, times)
			if len(list) == 0 || len(list) > limit || !slices.ContainsFunc(list, func(i int) bool { return times[i].Equal(times[newest]) }) {
				return false
			}
		}
		return true
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
}

func TestParseSpan(t *testing.T) {
	for text, want := range map[string]Span{
		"7d": {Days: 7}, "1y6m": {Years: 1, Months: 6}, "2d12h": {Days: 2, Hours: 12}, "30min": {Minutes: 30}, "1m1min": {Months: 1, Minutes: 1}, "": {}, "1d1d": {Days: 2},
	} {
		got, err := ParseSpan(text)
		if err != nil || got != want {
			t.Errorf("%q is %+v (%v) and should be %+v", text, got, err, want)
		}
		if again, err := ParseSpan(got.String()); err != nil || again != got {
			t.Errorf("%q comes back as %+v, %v", text, again, err)
		}
	}
	for _, text := range []string{"7", "d", "-1d", "1w", "1.5h", "7 d", "1d,2h", strings.Repeat("9", 30) + "h"} {
		if _, err := ParseSpan(text); err == nil || !strings.Contains(err.Error(), "2d12h") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
