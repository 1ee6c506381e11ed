package proc

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestReadTaskDescribesThisProcess(t *testing.T) {
	task, err := ReadTask(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	exe, _ := os.Executable()
	if task.PPID != os.Getppid() || task.Exe != exe || task.StartTime == 0 || !slices.Equal(task.Cmdline, os.Args) {
		t.Errorf("%+v", task)
	}
	if task.Threads[0] != task.PID {
		t.Errorf("threads %v do not begin with the leader %d", task.Threads, task.PID)
	}
	if task.Zombie() {
		t.Error("a running process is called a zombie")
	}
}

func TestAProcessThatIsGone(t *testing.T) {
	const never = 1 << 22 // beyond pid_max
	for name, err := range map[string]error{
		"task": second(ReadTask(never)), "maps": second(Maps(never)), "smaps": second(Smaps(never)),
		"tree": second(Tree(never)), "pagemap": second(OpenPagemap(never)),
	} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestParseStatWithBracketsInTheCommand(t *testing.T) {
	line := "42 (a) b (c)) S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"
	task, err := parseStat([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if task.Comm != "a) b (c)" || task.PPID != 1 || task.PGID != 2 || task.SID != 3 || task.StartTime != 12345 || task.State != 'S' {
		t.Errorf("%+v", task)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 0"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, line []byte) {
		if task, err := parseStat(line); err == nil && task == nil {
			t.Error("neither a task nor an error")
		}
	})
}

func FuzzParseMaps(f *testing.F) {
	f.Add("7f00-7f10 rw-p 00000000 00:00 0 [heap]\nRss: 4 kB\nVmFlags: rd wr\n")
	f.Add("Rss: 4 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		maps, err := parseMaps(1, strings.NewReader(text))
		if err == nil {
			for _, m := range maps {
				_ = m.Kind()
			}
		}
	})
}

// mapped returns a fresh private mapping of n pages.
func mapped(t *testing.T, pages int) ([]byte, Range) {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // which fails where there are none
	start := uint64(uintptr(unsafe.Pointer(&memory[0])))
	return memory, Range{start, start + uint64(len(memory))}
}

func TestSmapsKnowsKindsAndFlags(t *testing.T) {
	memory, r := mapped(t, 8)
	memory[0] = 1
	if err := unix.Mlock(memory); err != nil {
		t.Fatal(err)
	}
	maps, err := Smaps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	found := false
	for _, m := range maps {
		kinds[m.Kind()] = true
		if m.Start <= r.Start && m.End >= r.End {
			found = m.Has("lo") && m.Private() && m.Anonymous() && m.AnonBytes >= r.Len()
		}
	}
	if !found {
		t.Error("the locked mapping is not described as one")
	}
	for _, kind := range []string{"stack", "anonymous", "file-private", "kernel"} {
		if !kinds[kind] {
			t.Errorf("no mapping of kind %q", kind)
		}
	}
}

func TestScanFindsWhatIsThere(t *testing.T) {
	memory, r := mapped(t, 10000)
	want := []Range{}
	for page := 0; page < 10000; page += 3 { // more runs than fit into one call
		memory[page*PageSize] = 1
		at := r.Start + uint64(page)*PageSize
		want = append(want, Range{at, at + PageSize})
	}
	pagemap, err := OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	got := []Range{}
	if err := pagemap.Scan(r, func(run Run) {
		if !run.Changed() {
			t.Fatalf("untracked memory at %#x counts as unchanged", run.Start)
		}
		got = append(got, run.Range)
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d runs, want %d", len(got), len(want))
	}
}

func TestScanPassesOverGuards(t *testing.T) {
	const guardInstall = 102 // MADV_GUARD_INSTALL (Linux 6.13)
	if !KnowsGuards() {
		t.Skip("needs PAGE_IS_GUARD (Linux 6.15)")
	}
	memory, r := mapped(t, 4)
	memory[0] = 1
	if err := unix.Madvise(memory[2*PageSize:3*PageSize], guardInstall); err != nil {
		t.Fatal(err)
	}
	pagemap, err := OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	pages := uint64(0)
	if err := pagemap.Scan(r, func(run Run) { pages += run.Len() / PageSize }); err != nil {
		t.Fatal(err)
	}
	if pages != 1 {
		t.Errorf("%d pages are said to be there, want 1", pages)
	}
}
