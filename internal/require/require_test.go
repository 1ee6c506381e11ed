package require

import (
	"fmt"
	"strings"
	"testing"
)

// fakeT records how a test ended.
type fakeT struct {
	*testing.T
	ended string
}

func (f *fakeT) Fatalf(format string, args ...any) { f.end("fail: "+format, args...) }
func (f *fakeT) Skipf(format string, args ...any)  { f.end("skip: "+format, args...) }

func (f *fakeT) end(format string, args ...any) {
	f.ended = fmt.Sprintf(format, args...)
	panic(f)
}

func ending(t *testing.T, do func(T)) (ended string) {
	t.Helper()
	f := &fakeT{T: t}
	defer func() {
		if recover() != nil {
			ended = f.ended
		}
	}()
	do(f)
	return "went on"
}

func TestMissing(t *testing.T) {
	missing := func(t T) { Missing(t, "tea", "the pot is %s", "empty") }
	for _, test := range []struct{ allowed, want string }{
		{"", "fail: missing tea"},
		{"coffee", "fail: missing tea"},
		{"coffee,tea", "skip: missing tea: the pot is empty"},
	} {
		t.Setenv("STASIS_ALLOW_SKIPS", test.allowed)
		if got := ending(t, missing); !strings.HasPrefix(got, test.want) {
			t.Errorf("allowed %q: %q, want %q", test.allowed, got, test.want)
		}
	}
}

func TestProgram(t *testing.T) {
	if got := Program(t, "sh"); !strings.HasSuffix(got, "/sh") {
		t.Errorf("sh is at %q", got)
	}
	if got := Program(t, "/bin/s[h]"); got != "/bin/sh" {
		t.Errorf("the pattern gives %q", got)
	}
	t.Setenv("STASIS_ALLOW_SKIPS", "no-such-program")
	if got := ending(t, func(t T) { Program(t, "no-such-program") }); !strings.HasPrefix(got, "skip: missing no-such-program") {
		t.Errorf("a missing program: %q", got)
	}
}
