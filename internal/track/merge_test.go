package track

import (
	"fmt"
	"testing"
)

// TestMemoryThatIsMovedNextToOther moves a table away and back beside memory that
// stayed where it was: the kernel may join the two, and end the tracking of both.
// What is written then must not be missed, now or later.
func TestMemoryThatIsMovedNextToOther(t *testing.T) {
	for _, kind := range []Kind{KindUserfaultfd, KindSoftDirty} {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(3)
			s.round()
			s.Ask("movetable 1 5")
			s.round()
			s.Ask("movetable 5 1") // where it was once
			stayed := 7
			s.Ask(fmt.Sprintf("write %d", stayed))
			if got := s.changed(); !got[stayed] {
				t.Error("a look missed what was written after the move")
			}
			if got := s.round(); !got[stayed] {
				t.Error("the round missed what was written after the move")
			}
			s.Ask(fmt.Sprintf("write %d", stayed))
			if got := s.round(); !got[stayed] {
				t.Error("the round after missed what was written")
			}
		})
	}
}
