package schedule

import (
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration
		line  string
		want  string // part of the error
	}{
		{"both", time.Second, "* * * * *", "one schedule"},
		{"too often", time.Millisecond, "", "100ms"},
		{"negative", -time.Second, "", "shortest"},
		{"not a line", 0, "every day", "cron line"},
		{"minute 61", 0, "61 * * * *", "cron line"},
		{"never", 0, "0 0 30 2 *", "no such day"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Parse(c.every, c.line)
			if err == nil {
				t.Fatalf("parsed as %v", s)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %q lacks %q", err, c.want)
			}
		})
	}
	if s, err := Parse(0, ""); s != nil || err != nil {
		t.Fatalf("no schedule: %v, %v", s, err)
	}
}

func TestNext(t *testing.T) {
	begin := time.Date(2026, 3, 1, 10, 2, 30, 0, time.UTC)
	for _, c := range []struct {
		every time.Duration
		line  string
		want  time.Duration
	}{
		{90 * time.Second, "", 90 * time.Second},
		{0, "*/5 * * * *", 2*time.Minute + 30*time.Second},
		{0, "@hourly", 57*time.Minute + 30*time.Second},
		{0, "CRON_TZ=Asia/Tokyo 0 20 * * *", 57*time.Minute + 30*time.Second}, // 11:00 UTC
	} {
		s, err := Parse(c.every, c.line)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Next(begin).Sub(begin); got != c.want {
			t.Errorf("%v %q: next after %v, want %v", c.every, c.line, got, c.want)
		}
	}
}

// Whatever the schedule, Missed agrees with asking for one time after the other.
func TestMissedCountsAll(t *testing.T) {
	due := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		every time.Duration
		line  string
	}{{7 * time.Second, ""}, {time.Minute, ""}, {0, "*/3 * * * *"}} {
		s, err := Parse(c.every, c.line)
		if err != nil {
			t.Fatal(err)
		}
		for late := -time.Second; late < 20*time.Minute; late += 13 * time.Second {
			now := due.Add(late)
			want, count := s.Next(due), 0
			for !want.After(now) {
				want, count = s.Next(want), count+1
			}
			if got, n := Missed(s, due, now); !got.Equal(want) || n != count {
				t.Fatalf("%v %q, %v late: next %v after %d missed, want %v after %d", c.every, c.line, late, got, n, want, count)
			}
		}
	}
}

// A clock that is set from 1970 to the present must not keep anybody busy.
func TestMissedIsBounded(t *testing.T) {
	s, err := Parse(0, "* * * * *")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 10, 0, 30, 0, time.UTC)
	if next, missed := Missed(s, time.Unix(0, 0).UTC(), now); missed != MostMissed || !next.Equal(now.Add(30*time.Second)) {
		t.Errorf("next %v after %d", next, missed)
	}
}

// Where clocks are set forward an hour of the day does not exist, and where they are set back one comes twice. A daily checkpoint is made
// on both days, once.
func TestDaysOfClockChanges(t *testing.T) {
	for _, c := range []struct{ line, from, want string }{
		{"CRON_TZ=Europe/Berlin 30 1 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T01:30:00+01:00"},
		{"CRON_TZ=Europe/Berlin 30 4 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T04:30:00+02:00"},
		{"CRON_TZ=Europe/Berlin 30 2 * * *", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"CRON_TZ=Europe/Berlin 30 4 * * *", "2026-10-24T12:00:00+02:00", "2026-10-25T04:30:00+01:00"},
	} {
		s, err := Parse(0, c.line)
		if err != nil {
			t.Fatal(err)
		}
		from, _ := time.Parse(time.RFC3339, c.from)
		want, _ := time.Parse(time.RFC3339, c.want)
		if got := s.Next(from); !got.Equal(want) {
			t.Errorf("%s after %s: %v, want %v", c.line, c.from, got, want)
		}
	}
}
