package pageserver

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"stasis/internal/image"
)

// What cannot be read of the parent is stored whole where the sender sends it,
// and a note says so. Where the sender leaves it to the parent, its dump fails.
func TestDamagedParent(t *testing.T) {
	const process, at, pages = 9<<8 | 1, 1 << 20, 400
	data := make([]byte, pages*page)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	for _, test := range []struct {
		name string
		send func(s *sender)
		want string
	}{
		{"sent", func(s *sender) { s.pages(t, process, at, data) }, ""},
		{"left to it", func(s *sender) {
			s.pages(t, process, at, data[:(pages-1)*page])
			s.hole(t, process, at+(pages-1)*page, 1)
		}, "has left memory at"},
	} {
		t.Run(test.name, func(t *testing.T) {
			first := receiving(t, rigOptions{codec: "none"})
			s := first.connect(longLayout)
			s.open(t, process)
			s.pages(t, process, at, data)
			s.close(t)
			parent := first.opened()
			for _, use := range parent.Uses() { // its last page is in one of them, and all of them are damaged
				if !use.File {
					first.memory.Files[image.ShardName(use.Shard)][use.Offset+use.Len/2] ^= 1
				}
			}
			g := receiving(t, rigOptions{codec: "none", parent: parent})
			s = g.connect(longLayout)
			s.open(t, process)
			test.send(s)
			if test.want != "" {
				if status := s.close(t); status == 0 {
					t.Error("the server says that all is well")
				}
				if err := g.refused(); !errors.Is(err, image.ErrLost) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("it says: %v", err)
				}
				return
			}
			if status := s.close(t); status != 0 {
				t.Fatalf("the server says %d", status)
			}
			got := memoryOf(t, g.opened(), 9)
			for i := range pages {
				if !bytes.Equal(got[at+uint64(i)*page], data[i*page:(i+1)*page]) {
					t.Fatalf("page %d is wrong", i)
				}
			}
			if notes := strings.Join(g.got.Notes, "; "); !strings.Contains(notes, "the parent is damaged") {
				t.Errorf("the notes do not say that the parent is damaged: %q", notes)
			}
		})
	}
}
