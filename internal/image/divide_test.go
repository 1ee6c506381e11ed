package image

import (
	"slices"
	"testing"
)

func TestDivide(t *testing.T) {
	const end = maxAddr / PageSize
	count := map[bucket]int{{7, 0}: 2, {7, 1}: 2, {7, 5}: 9, {7, 6}: 1, {8, 4}: 100, {9, 3}: 1}
	got := divideWindows([]int{7, 9, 11}, count, 4)
	for pid, want := range map[int][]window{
		7:  {{0, 5 * bucketPages, 4}, {5 * bucketPages, 6 * bucketPages, 9}, {6 * bucketPages, end, 1}},
		9:  {{0, end, 1}},
		11: {{0, end, 0}},
	} {
		if !slices.Equal(got[pid], want) {
			t.Errorf("process %d: %v, want %v", pid, got[pid], want)
		}
	}
	if len(got) != 3 {
		t.Errorf("windows of %d processes", len(got))
	}
}
