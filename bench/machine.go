package main

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/bench/rig"
)

// machine is what the numbers were taken on.
type machine struct {
	Kernel    string  `json:"kernel"`
	CPU       string  `json:"cpu"`
	CPUs      int     `json:"cpus"`
	MemoryGiB float64 `json:"memory_gib"`
	HugePages string  `json:"transparent_huge_pages"`
	CRIU      string  `json:"criu"`
	Go        string  `json:"go"`
	Stasis    string  `json:"stasis"`       // git describe
	Load      string  `json:"load_average"` // before the first measurement
	BusyCPUs  float64 `json:"busy_cpus"`    // used by others before the first measurement
}

func thisMachine(stock *rig.Stock) machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail with a valid pointer
	version, err := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		version = []byte("unknown")
	}
	return machine{
		Kernel: unix.ByteSliceToString(u.Release[:]), CPU: colonField("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		MemoryGiB: float64(memInfo("MemTotal")) / (1 << 30),
		HugePages: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
		CRIU:      stock.Version, Go: runtime.Version(), Stasis: strings.TrimSpace(string(version)),
		Load: strings.Join(firstFields("/proc/loadavg", 3), " "), BusyCPUs: busyCPUs(),
	}
}

// colonField reads "key : value" from a file of such lines, the first one.
func colonField(path, key string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// memInfo reads a number of /proc/meminfo in bytes.
func memInfo(key string) int64 {
	kib, err := strconv.ParseInt(strings.TrimSuffix(colonField("/proc/meminfo", key), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

func availableMemory() int64 { return memInfo("MemAvailable") }

// chosen reads the word in brackets of a setting such as "always [madvise] never".
func chosen(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	_, rest, _ := strings.Cut(string(text), "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}

func firstFields(path string, n int) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(text))
	return fields[:min(n, len(fields))]
}

const (
	busyLimit  = 0.15 // CPUs in use by others from which on numbers are called noisy
	busyWindow = 500 * time.Millisecond
)

// busyCPUs looks for a moment how many CPUs are in use. Nothing of the
// benchmark must be at work then.
func busyCPUs() float64 {
	before := usedTicks()
	time.Sleep(busyWindow)
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Stasis runs on
	return float64(usedTicks()-before) / ticksPerSecond / busyWindow.Seconds()
}

// usedTicks sums what all CPUs did, but for idling and waiting for disks.
func usedTicks() int64 {
	var used int64
	// user nice system idle iowait irq softirq steal
	for i, field := range firstFields("/proc/stat", 9) {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err == nil && i != 4 && i != 5 {
			used += ticks
		}
	}
	return used
}
