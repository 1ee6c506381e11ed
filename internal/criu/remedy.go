package criu

import "strings"

// remedies maps a part of a line in CRIU's log to what a user can do about it.
// The first that matches, over the lines from the last to the first, is taken.
var remedies = []struct{ part, remedy string }{
	{"Connected TCP socket", "dump with --tcp-established to keep the connection or --tcp-close to drop it"},
}

// Remedy says what to do about the errors of a CRIU log, or is empty.
func Remedy(lines []string) string {
	for i := len(lines) - 1; i >= 0; i-- {
		for _, r := range remedies {
			if strings.Contains(lines[i], r.part) {
				return r.remedy
			}
		}
	}
	return ""
}
