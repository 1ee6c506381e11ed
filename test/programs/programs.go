// Package programs holds the sources of the programs that tests dump and
// restore: subject, in C, whose features each hold one kind of state, and small
// servers in the languages that users run. internal/testkit builds, starts and
// questions them; each source says how it is spoken to.
//
// The sources are part of the test binary, so that a test runs from any folder.
// Nothing here changes after start: it may be used by any goroutine.
package programs

import "embed"

// Subject holds subject's C sources, in the folder src.
//
//go:embed src
var Subject embed.FS

// Servers holds one server in several languages, see servers/README.md, and
// what tests need to start others.
//
//go:embed servers
var Servers embed.FS
