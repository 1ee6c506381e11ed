package stasis

import (
	"slices"
	"strconv"
	"strings"

	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/workdir"
)

// checkHost compares what no restore can bridge, and the kernel, which mostly
// it can.
func (c *conflicts) checkHost(was, is image.Host) {
	if was.Arch != is.Arch {
		c.refuse("the checkpoint was made on %s, and this machine is %s: restore it on a machine of its kind", was.Arch, is.Arch)
	}
	if was.PageSize != is.PageSize {
		c.refuse("the checkpoint has pages of %d bytes, and this kernel has %d: restore it on a kernel like its own", was.PageSize, is.PageSize)
	}
	if was.Kernel == "" {
		return // of an imported checkpoint, whose images do not tell
	}
	if was.Kernel != is.Kernel {
		c.warn("the checkpoint was made on Linux %s, and this is %s: should the restore fail, try the kernel of the checkpoint", was.Kernel, is.Kernel)
	}
}

// checkCPU finds the features that the tree may use and this CPU lacks: a
// program looks for them when it starts, and never again.
func (c *conflicts) checkCPU(was, is image.Host, cpuCap string) {
	if was.Arch != is.Arch {
		return
	}
	var missing []string
	for _, feature := range was.CPUFeatures {
		if usedByPrograms(was.Arch, feature) && !slices.Contains(is.CPUFeatures, feature) {
			missing = append(missing, feature)
		}
	}
	if missing == nil {
		return
	}
	tell := c.object
	if cpuCap == "none" {
		tell = c.warn
	}
	tell("this CPU (%s) lacks %s, which the one of the checkpoint (%s) has and its programs may use: restore it on a CPU that has them",
		is.CPUModel, strings.Join(missing, ", "), was.CPUModel)
}

// usedByPrograms says whether a flag of /proc/cpuinfo stands for instructions
// or state of programs. The others concern the kernel, or speed.
func usedByPrograms(arch, feature string) bool {
	if arch != "x86_64" {
		return true // all of them do, where the kernel lists what programs may use
	}
	if slices.Contains(programFeatures, feature) {
		return true
	}
	return slices.ContainsFunc(programFamilies, func(family string) bool { return strings.HasPrefix(feature, family) })
}

var (
	// programFamilies are the beginnings of the names of x86 instruction sets.
	programFamilies = []string{"3dnow", "amx", "avx", "mmx", "sse", "xsave"}

	// programFeatures are the x86 features that a program may use without
	// asking the kernel.
	programFeatures = []string{
		"abm", "adx", "aes", "bmi1", "bmi2", "cldemote", "clflush", "clflushopt", "clwb", "clzero", "cmov", "cx16", "cx8",
		"enqcmd", "f16c", "fma", "fma4", "fpu", "fsgsbase", "fxsr", "gfni", "hle", "la57", "lahf_lm", "lwp", "misalignsse",
		"movbe", "movdir64b", "movdiri", "mpx", "ospke", "pclmulqdq", "pku", "pni", "popcnt", "ptwrite", "rdpid", "rdpru",
		"rdrand", "rdseed", "rdtscp", "rtm", "serialize", "sha512", "sha_ni", "sm3", "sm4", "ssse3", "syscall", "tbm", "tsc",
		"user_shstk", "vaes", "vpclmulqdq", "waitpkg", "xgetbv1", "xop",
	}
)

// checkCRIU warns of a CRIU that is older than the images.
func (c *conflicts) checkCRIU(was, is string) {
	if olderVersion(is, was) {
		c.warn("the checkpoint was made with CRIU %s, and this is %s: should the restore fail, install the newer one", was, is)
	}
}

// olderVersion compares versions such as 4.2.1.
func olderVersion(a, b string) bool {
	return slices.Compare(versionParts(a), versionParts(b)) < 0
}

func versionParts(version string) []int {
	var parts []int
	for part := range strings.SplitSeq(version, ".") {
		number, _ := strconv.Atoi(part)
		parts = append(parts, number)
	}
	return parts
}

// checkRoom finds out whether CRIU's images fit where they go, and the memory
// of the tree into that of the machine.
func (c *conflicts) checkRoom(near string, f image.Figures, files []image.FileInfo) {
	var onDisk, pages uint64
	for _, file := range files {
		onDisk += uint64(file.Size)
		if strings.HasPrefix(file.Name, "pages-") {
			pages += uint64(file.Size)
		}
	}
	if folder, free, err := workdir.Room(near, onDisk); err != nil {
		c.foresee("no place for CRIU's images: %v: make one of these folders writable", err)
	} else if free < onDisk {
		c.foresee("CRIU's images need %s in %s, and %s are free there: make room", mebibytes(onDisk), folder, mebibytes(free))
	}
	memory, err := proc.MemoryInfo()
	if err != nil {
		return
	}
	// Pages of zeros take no memory until they are written.
	need := uint64(max(f.BytesMemory-f.ZeroPages*image.PageSize, 0)) + pages
	if free := memory["MemAvailable"] + memory["SwapFree"]; free < need {
		c.object("the tree needs %s of memory, and %s are available: end other programs, or add swap space", mebibytes(need), mebibytes(free))
	}
}

func mebibytes(n uint64) string { return strconv.FormatUint((n+1<<20-1)>>20, 10) + " MiB" }
