package chain

import (
	"math/rand/v2"
	"testing"
)

// TestOutsideAgainstNaive compares sums of spans with counting bytes.
func TestOutsideAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	some := func() (list []span, in [64]bool) {
		for range r.IntN(8) {
			from := r.Int64N(60)
			s := span{from, from + 1 + r.Int64N(64-from)}
			if s.to > s.from+9 {
				s.to = s.from + 9
			}
			list = append(list, s)
			for i := s.from; i < s.to; i++ {
				in[i] = true
			}
		}
		return joined(list), in
	}
	for range 5000 {
		a, inA := some()
		b, inB := some()
		want := int64(0)
		for i := range inA {
			if inA[i] && !inB[i] {
				want++
			}
		}
		if got := outside(a, b); got != want {
			t.Fatalf("of %v there is %d outside %v, not %d", a, want, b, got)
		}
		for i := 1; i < len(a); i++ {
			if a[i].from <= a[i-1].to {
				t.Fatalf("%v is not joined", a)
			}
		}
	}
}
