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
