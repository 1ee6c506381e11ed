// Command warehouse is a program to dump and restore: a key-value store of goods
// that moves stock from shelf to shelf all the time and can prove that none got
// lost.
//
//	warehouse -dir DIR [-mib 400] [-moves 5000]
//
// It answers HTTP on the Unix socket DIR/warehouse.sock:
//
//	GET /status   how many moves there have been, and the longest standstill
//	GET /verify   checks every item and all sums
//
// Words: an item is one kind of goods, with a key, a shelf and a quantity; a
// move takes some of one item and books it on another; a standstill is a time
// in which the program did not run.
//
// Moves and checks take turns under the store's lock; the clock that sees
// standstills runs on a thread of its own.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

func main() {
	dir := flag.String("dir", ".", "folder of the socket")
	mib := flag.Int("mib", 400, "size of the goods in MiB")
	moves := flag.Int("moves", 5000, "moves a second")
	flag.Parse()
	if err := run(*dir, *mib, *moves); err != nil {
		fmt.Fprintln(os.Stderr, "warehouse:", err)
		os.Exit(1)
	}
}

func run(dir string, mib, moves int) error {
	goods := newStore(mib << 20 / itemSize)
	clock := startClock()
	go goods.work(moves)

	http.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{
			"moves": goods.moves.Load(), "items": goods.count, "bytes": goods.count * itemSize,
			"standstill_us": clock.longest().Microseconds(),
		})
	})
	http.HandleFunc("GET /verify", func(w http.ResponseWriter, _ *http.Request) {
		checked, err := goods.verify()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, map[string]any{"moves": checked, "items": goods.count})
	})
	listener, err := net.Listen("unix", filepath.Join(dir, "warehouse.sock"))
	if err != nil {
		return err
	}
	server := http.Server{ReadHeaderTimeout: time.Second}
	server.SetKeepAlivesEnabled(false) // nobody stays connected while it is dumped
	return server.Serve(listener)
}

func reply(w http.ResponseWriter, what map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what) // fails only for a client that has gone
}
