// Package health says whether a machine can dump and restore, and whether a
// process tree can be dumped, each with what to do about it.
//
// [Machine] tries what can be tried, on this very program or on CRIU, instead
// of guessing from versions. [Process] reads /proc and asks the kernel for its
// sockets; it neither stops nor touches a process.
//
// Words: a result is one statement. It fails where a dump or restore would; it
// warns where it needs an option, takes longer, or fails for some programs
// only. What is good is said as well, so that it can be seen what was looked at.
//
// All functions may be called from several goroutines at once.
package health

import (
	"fmt"
	"strings"
)

// Status says how good something is.
type Status string

// The values of Status.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Result is what was found out about one thing.
type Result struct {
	Name   string `json:"name"`             // what was looked at
	Status Status `json:"status"`           // how good it is
	Detail string `json:"detail,omitempty"` // what was found
	Remedy string `json:"remedy,omitempty"` // what to do about it; also good advice where nothing is wrong
}

func ok(name, format string, args ...any) Result {
	return Result{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, detail, remedy string) Result {
	return Result{Name: name, Status: Warn, Detail: detail, Remedy: remedy}
}

func fail(name, detail, remedy string) Result {
	return Result{Name: name, Status: Fail, Detail: detail, Remedy: remedy}
}

// size writes bytes for people.
func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/(1<<20)), ".0") + " MiB"
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}

// number writes a count of things for people.
func number(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if last := len(thing) - 1; last > 0 && thing[last] == 's' {
		return fmt.Sprintf("%d %ses", n, thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
