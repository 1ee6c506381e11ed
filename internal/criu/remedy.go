package criu

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// explanation is what a line of CRIU's log means.
type explanation struct {
	parts  []string // the line holds all of them
	cause  string
	remedy string
}

func (e *explanation) fits(line string) bool {
	for _, part := range e.parts {
		if !strings.Contains(line, part) {
			return false
		}
	}
	return true
}

// Remedy says what the errors of a CRIU log mean and what to do about them, and
// which of the lines says so; both are empty where none is known. The first error
// is mostly the reason for those that follow it, so the first that is known counts;
// what only tells of a consequence counts where nothing else is known.
func Remedy(lines []string) (remedy, line string) {
	for _, table := range [][]explanation{causes, consequences} {
		for _, line := range lines {
			if e := find(table, line); e != nil {
				return e.cause + ": " + e.remedy, line
			}
		}
	}
	return "", ""
}

// NumberTaken says whether a restore failed because somebody had a pid or thread
// id of the tree. CRIU makes all processes and threads before any of them runs.
func NumberTaken(err error) bool {
	var failure *Error
	return errors.As(err, &failure) && slices.ContainsFunc(failure.Lines, func(line string) bool { return find(ofTakenNumbers, line) != nil })
}

// TellsOfTaken says whether such a failure is about this number, as that of a
// process which CRIU could not make.
func TellsOfTaken(err error, number int) bool {
	var failure *Error
	return errors.As(err, &failure) && slices.ContainsFunc(failure.Lines, func(line string) bool {
		return find(ofTakenNumbers, line) != nil && slices.Contains(strings.FieldsFunc(line, notDigit), strconv.Itoa(number))
	})
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

func find(table []explanation, line string) *explanation {
	for i := range table {
		if table[i].fits(line) {
			return &table[i]
		}
	}
	return nil
}

// one makes an entry for lines that hold a text.
func one(part, cause, remedy string) explanation {
	return explanation{parts: []string{part}, cause: cause, remedy: remedy}
}

// both makes an entry for lines that hold two texts.
func both(first, second, cause, remedy string) explanation {
	return explanation{parts: []string{first, second}, cause: cause, remedy: remedy}
}

// table joins the parts of a table.
func table(parts ...[]explanation) []explanation {
	var all []explanation
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// causes are the lines that say what is wrong. Within each part the special
// comes before the general.
var causes = table(
	ofSockets, ofDescriptors, ofFiles, ofTerminals, ofProcesses, ofTakenNumbers, ofNumbers,
	ofMemory, ofMounts, ofNamespaces, ofCgroups, ofRights, ofHost, ofImages, ofScripts,
)

// consequences are lines that mostly follow from an error that was told before.
var consequences = []explanation{
	one("RPC client reported script error", "Stasis stopped CRIU because of an error of its own",
		"the error above is the reason"),
	one("action scripts failed", "an action script failed",
		"run the script of --action-script by hand, with CRTOOLS_SCRIPT_ACTION set, and see what it says"),
	one("killed by signal 9", "a process was killed while it was being restored",
		"see whether the kernel's log (dmesg) tells of a lack of memory"),
	one("killed by signal 11", "CRIU's own code crashed in a restored process",
		"install a newer CRIU; if it stays, report it with the log (--log-level 4)"),
	one("died too early", "a process ended while it was being restored",
		"run it again with --log-level 4 and look for the first error"),
	one("killed by signal", "a process ended while it was being restored",
		"run it again with --log-level 4 and look for the first error"),
	one("exited, status=", "a program that CRIU ran, or a process that it was restoring, ended with an error",
		"run it again with --log-level 4 and look for the first error"),
	one("No space left on device", "a disk is full", "make room on the disk of the folder for work files, and on /run and /tmp"),
	one("Disk quota exceeded", "a disk quota is used up", "make room, or raise the quota"),
	one("Read-only file system", "a file system is mounted read-only", "mount it for writing, or choose another folder"),
	one("Too many open files", "a limit of open files is too low", "raise it with ulimit -n, or LimitNOFILE of the service, and restore as root"),
	one("Cannot allocate memory", "the machine is out of memory", "end other programs, add swap space, or raise the limit of the memory cgroup"),
	one("Operation not permitted", "CRIU lacks a right", "run as root with all capabilities; stasis check names those that are missing"),
	one("Permission denied", "CRIU may not open a file", "run as root, and see whether SELinux or AppArmor stands in the way (dmesg)"),
}
