package writer

import (
	"testing"

	"stasis/internal/image"
)

func TestZeroPages(t *testing.T) {
	data := make([]byte, image.MaxBlock)
	if got := zeroPages(data); got != ^uint64(0) {
		t.Errorf("all zero: %x", got)
	}
	for i := range data[:5*image.PageSize] {
		if i%61 != 0 && i%image.PageSize > 8 && i%image.PageSize < image.PageSize-8 {
			continue // every page's ends, and some of the middle
		}
		data[i] = 1
		if got := zeroPages(data); got != ^(uint64(1) << (i / image.PageSize)) {
			t.Fatalf("byte %d is not zero: %x", i, got)
		}
		data[i] = 0
	}
	if got := zeroPages(data[:3*image.PageSize]); got != 7 {
		t.Errorf("three pages: %x", got)
	}
	if got := zeroPages(nil); got != 0 {
		t.Errorf("no page: %x", got)
	}
}
