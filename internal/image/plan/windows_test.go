package plan

import (
	"slices"
	"testing"

	"stasis/internal/image"
)

func TestDivide(t *testing.T) {
	const end = image.MaxAddr / image.PageSize
	count := map[bucket]int{{7, 0}: 2, {7, 1}: 2, {7, 5}: 9, {7, 6}: 1, {8, 4}: 100, {9, 3}: 1}
	got := divideWindows([]int{7, 9, 11}, count, 4)
	for pid, want := range map[int][]window{
		7:  {{0, 5 * BucketPages, 4}, {5 * BucketPages, 6 * BucketPages, 9}, {6 * BucketPages, end, 1}},
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
