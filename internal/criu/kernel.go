package criu

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/zeebo/xxh3"
)

// kernelPrefix begins the names of the files in which CRIU keeps what it has
// found out about the kernel: see preload/kernel.c. The next part of the name
// stands for what the answers depend on.
const kernelPrefix = "criu-kernel-"

// kernelDir is their folder; tests have one of their own.
var kernelDir = knownDir

// kernelFile is the file for this CRIU on this kernel, in these namespaces and
// with these capabilities; "" where it cannot be kept where nobody else writes.
func (b *Binary) kernelFile() string {
	if os.MkdirAll(kernelDir, 0o755) != nil || !ownAlone(kernelDir) {
		return ""
	}
	depends := []string{b.Path, b.VersionString()}
	if info, err := os.Stat(b.Path); err == nil {
		depends = append(depends, info.ModTime().Format(time.RFC3339Nano), strconv.FormatInt(info.Size(), 10))
	}
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // it would be believed after the next boot
	}
	boot := strings.TrimSpace(string(raw))
	namespaces, err := filepath.Glob("/proc/self/ns/*")
	if err != nil {
		return ""
	}
	for _, namespace := range namespaces {
		target, err := os.Readlink(namespace)
		if err != nil {
			return ""
		}
		depends = append(depends, target)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Seccomp:") {
			depends = append(depends, line)
		}
	}
	hash := xxh3.HashString128(strings.Join(depends, "\n")).Bytes()
	path := filepath.Join(kernelDir, kernelPrefix+boot+"-"+hex.EncodeToString(hash[:]))
	_, err = os.Lstat(path)
	if err == nil && !ownAlone(path) {
		return ""
	}
	if err != nil {
		forget(boot)
	}
	return path
}

// kernelEnvironment tells the library in CRIU the file to use, and another that CRIU
// writes first and [Session.Close] removes if it stays.
func kernelEnvironment(file, temporary string) []string {
	return []string{"STASIS_KERNEL_FILE=" + file, "STASIS_KERNEL_TEMPORARY=" + temporary}
}

// ownAlone says that nobody else may write a file, or into a folder.
func ownAlone(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSymlink != 0 || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// Forget makes CRIU find out anew what the kernel can do, as after a module was
// loaded.
func Forget() { forget("") }

// forget removes the files of other boots than the given one.
func forget(keep string) {
	files, _ := filepath.Glob(filepath.Join(kernelDir, kernelPrefix+"*")) // the pattern is right
	for _, file := range files {
		if keep == "" || !strings.HasPrefix(filepath.Base(file), kernelPrefix+keep) {
			_ = os.Remove(file) // whoever cannot remove it could not have made it
		}
	}
}
