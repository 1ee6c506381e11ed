// Package schedule says when the next checkpoint of a job is due: every so often, or by a cron line.
//
// A schedule keeps no state: it is asked for the time that follows another, so that a time that was missed is seen by whoever
// asks, and can be said. Everything may be called from several goroutines at once.
package schedule

import (
	"errors"
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

// MinEvery is the shortest distance of two checkpoints: below it, a job would do little else.
const MinEvery = 100 * time.Millisecond

// Schedule gives points in time.
type Schedule interface {
	// Next is the first time after the given one.
	Next(after time.Time) time.Time
}

// Parse makes the schedule of a distance or of a cron line; with neither it is nil, which is no schedule. A line has the five
// fields of crontab(5), or is @hourly and the like; CRON_TZ=Europe/Vienna in front of it names a time zone.
func Parse(every time.Duration, line string) (Schedule, error) {
	switch {
	case every != 0 && line != "":
		return nil, errors.New("a job has one schedule: give either a distance (every) or a cron line")
	case every == 0 && line == "":
		return nil, nil
	case every != 0 && every < MinEvery:
		return nil, fmt.Errorf("every %v: the shortest distance of two checkpoints is %v", every, MinEvery)
	case every != 0:
		return distance(every), nil
	}
	s, err := cron.ParseStandard(line)
	if err != nil {
		return nil, fmt.Errorf("cron line %q: %w: write minute, hour, day of month, month and day of week, such as \"*/5 * * * *\"", line, err)
	}
	if s.Next(time.Now()).IsZero() {
		return nil, fmt.Errorf("cron line %q: there is no such day in the next five years", line)
	}
	return s, nil
}

type distance time.Duration

// Next implements Schedule. Unlike cron's own @every it does not round to seconds.
func (d distance) Next(after time.Time) time.Time { return after.Add(time.Duration(d)) }

// MostMissed is as far as Missed counts for a cron line: a clock that goes from 1970 to the present at once passes millions.
const MostMissed = 10000

// Missed returns the first time after due that is not past yet, and how many between them have been missed, due not counted.
func Missed(s Schedule, due, now time.Time) (next time.Time, missed int) {
	if d, ok := s.(distance); ok { // after a long sleep of the machine there may be millions
		if late := now.Sub(due); late >= 0 {
			missed = int(late / time.Duration(d))
		}
		return due.Add(time.Duration(missed+1) * time.Duration(d)), missed
	}
	for next = s.Next(due); !next.IsZero() && !next.After(now); next = s.Next(next) {
		if missed++; missed == MostMissed {
			return s.Next(now), missed
		}
	}
	return next, missed
}
