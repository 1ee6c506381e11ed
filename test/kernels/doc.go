// Package kernels has the tests that run on other kernels than this machine's:
// make test-kernels boots them in QEMU. Here they run as well, with the trackers
// that are available.
package kernels
