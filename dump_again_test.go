package stasis

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"stasis/internal/image"
)

// TestDumpsThatAreMadeAnew: each reason for another dump counts, in whatever order they show, and none for ever.
func TestDumpsThatAreMadeAnew(t *testing.T) {
	changed, lost, other := fmt.Errorf("step: %w", errFlagsChanged), fmt.Errorf("step: %w", image.ErrLost), errors.New("other")
	stream := NewStream(io.Discard)
	for _, test := range []struct {
		name   string
		target Target
		parent string
		fails  []error // of the dumps, one after the other; then they succeed
		dumps  string  // how they were made: exact, on a parent
		err    error
	}{
		{"well", nil, "p", nil, "p", nil},
		{"changed", nil, "p", []error{changed}, "p ep", nil},
		{"changed, lost, and changed again", nil, "p", []error{changed, lost, changed}, "p ep e e", nil},
		{"lost, and then changed", nil, "p", []error{lost, changed}, "p - e", nil},
		{"always changing", nil, "p", []error{changed, changed, changed, changed}, "p ep ep", errFlagsChanged},
		{"lost without a parent", nil, "", []error{lost, lost}, "-", image.ErrLost},
		{"other", nil, "p", []error{other}, "p", other},
		{"changed, to a stream", stream, "p", []error{changed}, "p", errFlagsChanged},
	} {
		t.Run(test.name, func(t *testing.T) {
			var dumps []string
			result, err := dumpAgain(DumpOptions{Target: test.target, Parent: test.parent}, func(opts DumpOptions, exact bool) (*DumpResult, error) {
				how := opts.Parent
				if exact {
					how = "e" + how
				}
				if how == "" {
					how = "-"
				}
				dumps = append(dumps, how)
				if n := len(dumps); n <= len(test.fails) {
					return nil, test.fails[n-1]
				}
				return &DumpResult{}, nil
			})
			if got := strings.Join(dumps, " "); got != test.dumps || !errors.Is(err, test.err) {
				t.Fatalf("dumps %q, %v; want %q, %v", got, err, test.dumps, test.err)
			}
			if noted := err == nil && len(result.Notes) > 0; noted != (err == nil && strings.Contains(fmt.Sprint(test.fails), image.ErrLost.Error())) {
				t.Errorf("a note of the lost parent: %t", noted)
			}
		})
	}
}
