package families

import (
	"testing"

	"stasis/internal/image/delta"
)

func TestDeltaCacheIsBounded(t *testing.T) {
	var c deltaCache
	const each = maxDeltas / 10
	for i := range uint32(200) {
		number := i * 7 % 31
		if d := c.take(number, uint8(i%3)); d != nil {
			if d.number != number {
				t.Fatalf("block %d is %d", number, d.number)
			}
			continue
		}
		c.add(&keptDeltas{number: number, pages: 7, left: 7, Pages: delta.Pages{Literals: make([]byte, 0, each)}}, uint8(i%3))
		total := 0
		for at, d := range c.order {
			if total += d.size(); c.kept[d.number] != d || d.place != at {
				t.Fatalf("block %d is lost", d.number)
			}
		}
		if total != c.bytes || total > maxDeltas || len(c.kept) != len(c.order) {
			t.Fatalf("it has %d bytes, counted %d, in %d and %d", total, c.bytes, len(c.kept), len(c.order))
		}
	}
	if len(c.order) < 5 {
		t.Errorf("only %d are kept", len(c.order))
	}
	for number := range uint32(31) {
		for page := range uint8(3) {
			c.take(number, page)
		}
	}
	if len(c.order) != 0 || c.bytes != 0 {
		t.Errorf("%d are kept that were used, %d bytes", len(c.order), c.bytes)
	}
}
