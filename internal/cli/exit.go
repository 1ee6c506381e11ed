package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/store"
	"stasis/internal/wire"
)

// The exit codes.
const (
	exitOK       = 0
	exitFailure  = 1
	exitInput    = 2
	exitDamaged  = 3
	exitConflict = 4
	exitProcess  = 5
	exitSignal   = 128 // and the signal's number
)

// kinds says how errors are called and which code they exit with. The first that an error is counts.
var kinds = []struct {
	name   string
	code   int
	errors []error
	help   string
}{
	{"damaged", exitDamaged, []error{stasis.ErrDamaged, store.ErrStream}, "the checkpoint is damaged, incomplete or of a newer version"},
	{"conflict", exitConflict, []error{stasis.ErrConflict, stasis.ErrBusy, store.ErrBusy, store.ErrExists, chain.ErrBusy},
		"something is in the way: the process is being dumped already, a folder or process id is in use"},
	{"input", exitInput, []error{stasis.ErrInput, store.ErrNoCheckpoint, chain.ErrNoPolicy}, "bad input: nothing was done"},
	{"process", exitProcess, []error{stasis.ErrProcess}, "the process cannot be dumped as it is; it runs on"},
}

// inputError is bad input that the command line found itself.
type inputError struct {
	err  error
	help string // command whose help explains it, or ""
}

func (e *inputError) Error() string {
	if e.help == "" {
		return e.err.Error()
	}
	return fmt.Sprintf("%s (see %s --help)", e.err, e.help)
}

func (e *inputError) Unwrap() []error { return []error{stasis.ErrInput, e.err} }

func badInput(format string, args ...any) error {
	return &inputError{err: fmt.Errorf(format, args...)}
}

// exitStatus ends the program with a code when everything there is to say has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// interruption is the reason for a context that a signal ended.
type interruption struct{ signal syscall.Signal }

func (e *interruption) Error() string { return "interrupted by " + unix.SignalName(e.signal) }

// kindOf gives the name of an error's kind and its exit code.
func kindOf(err error) (name string, code int) {
	if by := (*interruption)(nil); errors.As(err, &by) {
		return "interrupted", exitSignal + int(by.signal)
	}
	for _, k := range kinds {
		for _, kind := range k.errors {
			if errors.Is(err, kind) {
				return k.name, k.code
			}
		}
	}
	if damage, version := (*image.DamageError)(nil), (*image.VersionError)(nil); errors.As(err, &damage) || errors.As(err, &version) {
		return "damaged", exitDamaged
	}
	if deduped, missing := (*chain.DedupedError)(nil), (*chain.MissingError)(nil); errors.As(err, &deduped) || errors.As(err, &missing) {
		return "damaged", exitDamaged
	}
	if unknown := (*chain.UnknownError)(nil); errors.As(err, &unknown) {
		return "conflict", exitConflict
	}
	return "failure", exitFailure
}

func exitCodeHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n\n")
	line := func(code, help string) { fmt.Fprintf(&b, "  %-5s %s\n", code, help) }
	line(fmt.Sprint(exitOK), "success")
	line(fmt.Sprint(exitFailure), "failure: the message says of what, and what to do")
	for code := exitInput; code <= exitProcess; code++ {
		for _, k := range kinds {
			if k.code == code {
				line(fmt.Sprint(code), k.help)
			}
		}
	}
	line(fmt.Sprintf("%d+N", exitSignal), "ended by signal N")
	b.WriteString("\nA restore that stays with its program exits with that program's code.\n")
	return b.String()
}

// failure is the JSON form of an error.
type failure struct {
	Error    string   `json:"error"`
	Step     string   `json:"step,omitempty"` // of the dump or restore
	Kind     string   `json:"kind"`
	ExitCode int      `json:"exit_code"`
	Damage   []damage `json:"damage,omitempty"`
}

// damage is a place where a checkpoint is damaged.
type damage struct {
	Checkpoint string `json:"checkpoint"`
	File       string `json:"file"`
	Offset     int64  `json:"offset"`
	Why        string `json:"why"`
}

// report tells about an error and returns its exit code.
func (a *app) report(err error) int {
	if status := exitStatus(0); errors.As(err, &status) {
		return int(status)
	}
	if nobodyReads(err) {
		return exitSignal + int(unix.SIGPIPE) // as programs end that do not handle it, such as in "stasis ps | head -1"
	}
	kind, code := kindOf(err)
	if a.output == outputJSON {
		lost := a.writeJSON(failure{
			Error: sentence(err), Step: string(stasis.FailedStep(err)), Kind: kind, ExitCode: code, Damage: damages(err),
		})
		if lost == nil {
			return code
		}
	}
	fmt.Fprintf(a.err, "stasis: %s\n", strings.ReplaceAll(sentence(err), "\n", "\n  "))
	return code
}

// nobodyReads says whether all that is wrong is that whoever reads the results has ended. A checkpoint that goes to standard output is no
// result, and is written under another name.
func nobodyReads(err error) bool {
	var lost *fs.PathError
	return errors.As(err, &lost) && lost.Path == os.Stdout.Name() && errors.Is(lost.Err, unix.EPIPE)
}

// sentence drops what says nothing to people: that a context was cancelled, where the signal that did it is named, that an input was
// invalid, where it is said why, and what two parts of one error say in the same words.
func sentence(err error) string {
	text := onceEach(strings.TrimPrefix(err.Error(), stasis.ErrInput.Error()+": "))
	by := (*interruption)(nil)
	if !errors.As(err, &by) {
		return text
	}
	text = strings.TrimSuffix(text, "\n"+by.Error())
	if errors.Is(err, context.Canceled) {
		text = strings.ReplaceAll(text, context.Canceled.Error(), by.Error())
	}
	if !strings.Contains(text, by.Error()) {
		text = by.Error() + ": " + text
	}
	return text
}

// onceEach drops lines that say what an earlier one says too.
func onceEach(text string) string {
	var said []string
	for line := range strings.SplitSeq(text, "\n") {
		if !slices.ContainsFunc(said, func(earlier string) bool { return strings.Contains(earlier, line) }) {
			said = append(said, line)
		}
	}
	return strings.Join(said, "\n")
}

// damages lists the damaged places that an error tells of.
func damages(err error) []damage {
	var list []damage
	for _, d := range wire.Damages(err) {
		list = append(list, damage{Checkpoint: d.GetCheckpoint(), File: d.GetFile(), Offset: d.GetOffset(), Why: d.GetWhy()})
	}
	return list
}

// writeJSON writes the one document that a program gets.
func (a *app) writeJSON(v any) error {
	encoder := json.NewEncoder(a.results)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// terminal says whether a stream is one.
func terminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && isTerminal(int(file.Fd()))
}
