package stasis

import (
	"testing"

	"stasis/internal/proc"
)

func mapping(start, end uint64, path, flags string) proc.Mapping {
	return proc.Mapping{Range: proc.Range{Start: start, End: end}, Perms: "rw-p", Dev: "00:00", Path: path, Flags: flags}
}

func TestFindSame(t *testing.T) {
	earlier := []proc.Mapping{mapping(0x1000, 0x3000, "[heap]", "rd wr"), mapping(0x8000, 0x9000, "", "rd nh")}
	for name, c := range map[string]struct {
		now  proc.Mapping
		want bool
	}{
		"same":               {mapping(0x1000, 0x3000, "[heap]", ""), true},
		"grown upwards":      {mapping(0x1000, 0x5000, "[heap]", ""), true},
		"grown downwards":    {mapping(0x7000, 0x9000, "", ""), true},
		"cut off at the end": {mapping(0x1000, 0x2000, "[heap]", ""), false},
		"cut off at start":   {mapping(0x2000, 0x3000, "[heap]", ""), false},
		"another name":       {mapping(0x1000, 0x3000, "[anon:x]", ""), false},
		"new":                {mapping(0x5000, 0x6000, "", ""), false},
		"behind all":         {mapping(0xa000, 0xb000, "", ""), false},
	} {
		if got := findSame(earlier, &c.now) != nil; got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

func TestKeptFlagsIgnoreWhatCRIUIgnores(t *testing.T) {
	a, b := mapping(0, 1, "", "rd wr mr uw sd nh"), mapping(0, 1, "", "rd wr mr nh")
	if keptFlags(&a) != keptFlags(&b) {
		t.Errorf("%q and %q", keptFlags(&a), keptFlags(&b))
	}
	b.Flags = "rd wr mr nh dd"
	if keptFlags(&a) == keptFlags(&b) {
		t.Error("a kept flag makes no difference")
	}
}
