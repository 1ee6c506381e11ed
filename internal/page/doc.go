// Package page serves the daemon's page for browsers: jobs, the time line of their checkpoints, and the memory map of one.
//
// Words: a link leads to the page and holds a code, which works once and for some minutes; whoever opens it first gets a session, which
// acts for the peer that asked for the link and lasts as long as the daemon. The code is in the link's fragment, which browsers
// send to nobody; the page takes it out of the address and exchanges it for the session's token, which it keeps for its tab alone.
//
// Every user of the machine, and every web site in a browser on it, can send requests to a loopback port. So a request passes
// through, from the outside: the headers that browsers set (who asks: [guard]); for calls of the API the list of those that only
// read, and the token; and then the daemon's own gate, with the peer of the session. There are no cookies, since browsers share these
// between all ports of a machine. docs/threat-model.md says against what that holds.
//
// The page itself is plain files without secrets, embedded, and asks nobody else for anything.
//
// All methods may be called from several goroutines at once.
package page
