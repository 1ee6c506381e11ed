package image

import (
	"fmt"
	"testing"
)

func TestCoalesce(t *testing.T) {
	got, err := Coalesce([]Range{{0x5000, 0x6000}, {0x1000, 0x3000}, {0x9000, 0x9000}, {0x3000, 0x4000}, {0x2000, 0x3000}})
	if want := "[{4096 16384} {20480 24576}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v (%v) instead of %s", got, err, want)
	}
	for _, bad := range []Range{{0x1001, 0x2000}, {0x1000, 0x2001}, {0x2000, 0x1000}, {0, MaxAddr + PageSize}} {
		if _, err := Coalesce([]Range{bad}); err == nil {
			t.Errorf("%v passed", bad)
		}
	}
}

func TestSubtract(t *testing.T) {
	a := []Range{{0x1000, 0x5000}, {0x6000, 0x8000}, {0x9000, 0xa000}}
	for _, test := range []struct {
		take []Range
		want string
	}{
		{nil, "[{4096 20480} {24576 32768} {36864 40960}]"},
		{[]Range{{0, 0x1000}, {0x5000, 0x6000}, {0xa000, 0xb000}}, "[{4096 20480} {24576 32768} {36864 40960}]"},
		{[]Range{{0x2000, 0x3000}, {0x4000, 0x7000}}, "[{4096 8192} {12288 16384} {28672 32768} {36864 40960}]"},
		{[]Range{{0, 0x9000}}, "[{36864 40960}]"},
		{[]Range{{0x2000, 0x4000}, {0x3000, 0x3800}, {0x9000, 0xa000}}, "[{4096 8192} {16384 20480} {24576 32768}]"},
		{[]Range{{0, 0xb000}}, "[]"},
	} {
		if got := fmt.Sprint(Subtract(a, test.take)); got != test.want {
			t.Errorf("without %v: %s, want %s", test.take, got, test.want)
		}
	}
}
