package wire

import (
	"errors"
	"strings"
	"testing"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/config"
)

// Settings that a dump would fail with are refused when they are given: a job's first dump may be hours away.
func TestDumpOptionsAreChecked(t *testing.T) {
	number := func(n int32) *int32 { return &n }
	large := func(n int64) *int64 { return &n }
	for _, test := range []struct {
		settings *v1.DumpSettings
		says     string
	}{
		{&v1.DumpSettings{Streams: number(1025)}, "streams is 1025"},
		{&v1.DumpSettings{Streams: number(-1)}, "streams is -1"},
		{&v1.DumpSettings{Nice: number(20)}, "nice is 20"},
		{&v1.DumpSettings{Nice: number(-1)}, "nice is -1"},
		{&v1.DumpSettings{Bandwidth: large(-1)}, "bandwidth is -1"},
		{&v1.DumpSettings{Compression: "lz5"}, "lz5"},
		{&v1.DumpSettings{Compression: "zstd", Level: 99}, "no level 99"},
		{&v1.DumpSettings{Level: 99}, "no level 99"},
	} {
		if _, err := DumpOptions(test.settings, config.Default()); !errors.Is(err, stasis.ErrInput) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%v: the error is %v, without %q", test.settings, err, test.says)
		}
	}
	for _, good := range []*v1.DumpSettings{nil, {}, {Streams: number(0), Nice: number(19), Bandwidth: large(0), Compression: "zstd", Level: 3}} {
		if _, err := DumpOptions(good, config.Default()); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
}
