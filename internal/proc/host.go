package proc

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// CPU is what /proc/cpuinfo says about the first processor.
type CPU struct {
	Model    string
	Features []string // its flags, sorted
}

// ReadCPU describes the processor of this machine.
func ReadCPU() (CPU, error) {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return CPU{}, fmt.Errorf("read the processor's features: %w", err)
	}
	return parseCPU(string(raw)), nil
}

// parseCPU knows the words of x86 ("model name", "flags") and of arm64
// ("Features"; the model is a set of numbers there).
func parseCPU(raw string) CPU {
	var cpu CPU
	var implementer, part string
	for line := range strings.Lines(raw) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			if cpu.Features != nil {
				break // the end of the first processor
			}
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			cpu.Model = value
		case "CPU implementer":
			implementer = value
		case "CPU part":
			part = value
		case "flags", "Features":
			cpu.Features = strings.Fields(value)
			slices.Sort(cpu.Features)
		}
	}
	if cpu.Model == "" && part != "" {
		cpu.Model = "implementer " + implementer + " part " + part
	}
	return cpu
}

// MemoryInfo reads figures of /proc/meminfo, in bytes: MemTotal, MemAvailable,
// SwapFree, …
func MemoryInfo() (map[string]uint64, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("read the memory in use: %w", err)
	}
	figures := make(map[string]uint64)
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) != 2 {
			continue
		}
		number, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read /proc/meminfo: %q: %w", line, err)
		}
		figures[key] = number << 10
	}
	return figures, nil
}

// Capabilities are the effective capabilities of a process as a set of bits,
// numbered as in capabilities(7).
func Capabilities(pid int) (uint64, error) {
	value, err := statusField(pid, "CapEff")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(value, 16, 64)
}

// statusField reads one line of /proc/PID/status; a missing one is empty.
func statusField(pid int, key string) (string, error) {
	raw, err := readFile(pid, "status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", nil
}

// ThreadFeatures are the features that a process has switched on for itself,
// such as shstk, a shadow stack (x86_Thread_features, Linux 6.6).
func ThreadFeatures(pid int) ([]string, error) {
	value, err := statusField(pid, "x86_Thread_features")
	return strings.Fields(value), err
}

// NumbersInside are the ids of threads, or of processes, in the innermost pid
// namespace that each lives in. One that ends meanwhile is left out.
func NumbersInside(tids []int) []int {
	inside := make([]int, 0, len(tids))
	for _, tid := range tids {
		value, err := statusField(tid, "NSpid")
		if err != nil {
			continue
		}
		number := tid
		if fields := strings.Fields(value); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[len(fields)-1]); err == nil {
				number = n
			}
		}
		inside = append(inside, number)
	}
	return inside
}
