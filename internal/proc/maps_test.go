package proc

import (
	"os"
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
