package cli

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stasis"
)

// outputForm is the value of --output.
type outputForm string

const (
	outputText outputForm = "text"
	outputJSON outputForm = "json"
)

func (o *outputForm) String() string { return string(*o) }
func (o *outputForm) Type() string   { return "text|json" }

func (o *outputForm) Set(text string) error {
	if form := outputForm(text); form == outputText || form == outputJSON {
		*o = form
		return nil
	}
	return fmt.Errorf("it is %s or %s", outputText, outputJSON)
}

// outputAsked looks for --output in arguments that could not be parsed: a program that asked for JSON gets its errors so.
func outputAsked(args []string) outputForm {
	for i, arg := range args {
		switch {
		case arg == "--":
			return outputText
		case slices.Contains([]string{"-ojson", "-o=json", "--output=json"}, arg),
			(arg == "-o" || arg == "--output") && i+1 < len(args) && args[i+1] == string(outputJSON):
			return outputJSON
		}
	}
	return outputText
}

// dumpsToStandardOutput says whether standard output belongs to a checkpoint, also where the arguments turn out to be wrong.
func dumpsToStandardOutput(args []string) bool {
	return slices.Contains(args, "dump") && slices.ContainsFunc(args, func(arg string) bool {
		return arg == "-" || arg == "-D-" || strings.HasSuffix(arg, "=-")
	})
}

// size is a number of bytes that can be written with a binary unit, as CRIU has it: 4096, 64K, 1M, 2G.
type size struct {
	most  int64 // that it may be
	into  func(int64)
	shown string
}

func (s *size) String() string { return s.shown }
func (s *size) Type() string   { return "SIZE" }

func (s *size) Set(text string) error {
	bytes, err := units.RAMInBytes(text)
	if err != nil || bytes < 0 {
		return errors.New("it is a number of bytes, such as 4096, 64K, 1M or 2G")
	}
	if bytes > s.most {
		return fmt.Errorf("it is at most %s", units.BytesSize(float64(s.most)))
	}
	s.into(bytes)
	s.shown = text
	return nil
}

// verbosity is CRIU's -v: a number, or as often as it is written.
type verbosity struct{ level *int }

func (v verbosity) Type() string { return "LEVEL" }

func (v verbosity) String() string {
	if v.level == nil || *v.level == 0 {
		return ""
	}
	return strconv.Itoa(*v.level)
}

func (v verbosity) Set(text string) error {
	if text == oneMore {
		*v.level = min(*v.level+1, 4)
		return nil
	}
	level, err := strconv.Atoi(text)
	if err != nil || level < 0 || level > 4 {
		return errors.New("it goes from 0 to 4")
	}
	*v.level = level
	return nil
}

// oneMore is what -v without a number sets.
const oneMore = "+1"

var (
	verbosityNumber = regexp.MustCompile(`^-v([0-9]+)$`)
	aNumber         = regexp.MustCompile(`^[0-9]+$`)
)

// criuVerbosity rewrites what no parser of flags with optional values takes: CRIU's -v4 to -v=4, and --log-level 4, whose 4 would
// be taken for a process id, to --log-level=4.
func criuVerbosity(args []string) []string {
	var rewritten []string
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--":
			return append(rewritten, args[i:]...)
		case arg == "--log-level" && i+1 < len(args) && aNumber.MatchString(args[i+1]):
			i++
			rewritten = append(rewritten, "--log-level="+args[i])
		default:
			rewritten = append(rewritten, verbosityNumber.ReplaceAllString(arg, "-v=$1"))
		}
	}
	return rewritten
}

// oneOf is a flag that takes one of some words.
type oneOf struct {
	into  *string
	words []string
}

func (o oneOf) String() string {
	if o.into == nil {
		return ""
	}
	return *o.into
}

func (o oneOf) Type() string { return strings.Join(o.words, "|") }

func (o oneOf) Set(text string) error {
	if !slices.Contains(o.words, text) {
		return fmt.Errorf("it takes one of %s", strings.Join(o.words, ", "))
	}
	*o.into = text
	return nil
}

// aliases gives flags other names that people know them by.
func aliases(flags *pflag.FlagSet, names map[string]string) {
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if other, ok := names[name]; ok {
			name = other
		}
		return pflag.NormalizedName(name)
	})
}

// flagError makes bad input of what the parser of flags says, with the flag that may have been meant.
func flagError(cmd *cobra.Command, err error) error {
	if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		if name := nearestFlag(cmd, unknown.GetSpecifiedName()); name != "" {
			err = fmt.Errorf("%w: did you mean --%s?", err, name)
		}
	}
	if bad := (*pflag.InvalidValueError)(nil); errors.As(err, &bad) {
		err = explainValue(bad)
	}
	return &inputError{err: err, help: cmd.CommandPath()}
}

// explainValue says what a number or a time looks like, instead of what the parser's language makes of it.
func explainValue(bad *pflag.InvalidValueError) error {
	var form string
	switch kind := bad.GetFlag().Value.Type(); {
	case kind == "duration":
		form = "it is a time with its unit, such as 500ms, 30s or 5m"
	case kind == "bool":
		form = "it is true or false"
	case strings.HasPrefix(kind, "uint"):
		bits, _ := strconv.Atoi(strings.TrimPrefix(kind, "uint"))
		form = fmt.Sprintf("it is a whole number from 0 to %d", uint64(1)<<bits-1)
	case strings.HasPrefix(kind, "int"):
		form = "it is a whole number"
	default:
		return bad
	}
	return fmt.Errorf("--%s %q: %s", bad.GetFlag().Name, bad.GetValue(), form)
}

// noEmptyFlags refuses a flag whose value is empty: mostly a script's variable that is not set, where leaving the flag out would do
// something else than was meant.
func noEmptyFlags(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		kind := f.Value.Type()
		if empty := kind == "string" && f.Value.String() == ""; empty && err == nil {
			what, _ := pflag.UnquoteUsage(f)
			err = &inputError{err: fmt.Errorf("--%s is empty: give %s, or leave the flag out", f.Name, what), help: cmd.CommandPath()}
		}
	})
	return err
}

// nearestFlag is the flag that takes at most a third of changed letters to get to, or "".
func nearestFlag(cmd *cobra.Command, name string) string {
	best, least := "", len(name)/3+1
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if distance := levenshtein.ComputeDistance(name, f.Name); distance < least && !f.Hidden {
			best, least = f.Name, distance
		}
	})
	return best
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasAvailableSubCommands() {
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		cmd.SuggestionsMinimumDistance = 2 // as cobra's own
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += ": did you mean " + strings.Join(near, " or ") + "?"
		}
		return &inputError{err: errors.New(text), help: cmd.CommandPath()}
	}
	return surplus(cmd, args)
}

// surplus complains of arguments that nobody asked for.
func surplus(cmd *cobra.Command, args []string) error {
	text := fmt.Sprintf("unexpected argument %q", args[0])
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.NoOptDefVal != "" && f.Value.Type() != "bool" && f.Name != "log-level" {
			text += fmt.Sprintf(": if it belongs to --%s, write --%s=%s", f.Name, f.Name, args[0])
		}
	})
	return &inputError{err: errors.New(text), help: cmd.CommandPath()}
}

// oneArg wants one argument, whose name is for the message.
func oneArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return &inputError{err: fmt.Errorf("%s is missing: write %s", name, cmd.UseLine()), help: cmd.CommandPath()}
		case 1:
			return nil
		}
		return surplus(cmd, args[1:])
	}
}

// maxPID is the greatest id that Linux gives to a process (PID_MAX_LIMIT).
const maxPID = 4 << 20

// parsePID reads a process id.
func parsePID(text string) (int, error) {
	pid, err := strconv.Atoi(text)
	switch {
	case err != nil:
		return 0, badInput("%q is no process id: give the number that ps or pgrep shows", text)
	case pid <= 0:
		return 0, badInput("process id %d: it must be greater than 0", pid)
	case pid > maxPID:
		return 0, badInput("process id %d: no process has a greater one than %d", pid, maxPID)
	case pid == 1:
		return 0, badInput("process 1 is what this machine runs under: choose another")
	}
	return pid, nil
}

// engineNames lists the values of --engine.
func engineNames() []string {
	return []string{string(stasis.EngineAuto), string(stasis.EngineBlind), string(stasis.EngineLazyPages), string(stasis.EngineCRIU)}
}
