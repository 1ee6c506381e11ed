package proc

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMappingsThatChangeWhileTheyAreRead: the kernel hands the list out in
// pieces, and mappings that are joined between two of them stand in both.
func TestMappingsThatChangeWhileTheyAreRead(t *testing.T) {
	const pages = 4000
	memory, _ := mapped(t, pages)
	protect := func(from, to, protection int) {
		if err := unix.Mprotect(memory[from*PageSize:to*PageSize], protection); err != nil {
			panic(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			for page := 0; page < pages; page += 2 {
				protect(page, page+1, unix.PROT_READ)
			}
			protect(0, pages, unix.PROT_READ|unix.PROT_WRITE)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	for range 20 {
		maps, err := Smaps(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(maps); i++ {
			if maps[i].Start < maps[i-1].End {
				t.Fatalf("%s overlaps %s", maps[i].Line, maps[i-1].Line)
			}
		}
	}
}

func TestJoin(t *testing.T) {
	list := []Range{{5, 7}, {1, 3}, {3, 4}, {6, 6}, {9, 12}, {10, 11}}
	before := slices.Clone(list)
	if got, want := Join(list), []Range{{1, 4}, {5, 7}, {9, 12}}; !slices.Equal(got, want) {
		t.Errorf("joined %v, want %v", got, want)
	}
	if !slices.Equal(list, before) || len(Join(nil)) != 0 {
		t.Errorf("the list became %v", list)
	}
}
