// The server of README.md in Go: goroutines, the runtime's timers, and a heap
// whose collector has something to do.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const size = 1 << 20

var (
	mu    sync.Mutex // guards words and kept
	words [size]uint32
	kept  = map[string]string{}
	ticks atomic.Uint64
)

func tick() {
	var garbage [][]byte
	for range time.Tick(10 * time.Millisecond) {
		ticks.Add(1)
		if garbage = append(garbage, make([]byte, 20000)); len(garbage) > 500 {
			garbage = nil
		}
	}
}

func work(seed, count uint32) string {
	for k := range count {
		words[(seed*1664525+k*1013904223)>>12] += seed + k
	}
	return "ok"
}

func digest() string {
	var sum uint32
	for i, w := range words {
		sum += w * uint32(2*i+1)
	}
	return fmt.Sprint(sum)
}

func answer(line string) string {
	mu.Lock()
	defer mu.Unlock()
	command, rest, _ := strings.Cut(line, " ")
	key, value, _ := strings.Cut(rest, " ")
	var seed, count uint32
	switch command {
	case "put":
		kept[key] = value
		return "ok"
	case "get":
		if v, found := kept[key]; found {
			return v
		}
		return "none"
	case "work":
		if _, err := fmt.Sscan(rest, &seed, &count); err != nil {
			return err.Error()
		}
		return work(seed, count)
	case "digest":
		return digest()
	case "ticks":
		return fmt.Sprint(ticks.Load())
	}
	return "what?"
}

func serve(c net.Conn) {
	defer c.Close()
	for in := bufio.NewScanner(c); in.Scan(); {
		if _, err := fmt.Fprintln(c, answer(in.Text())); err != nil {
			return
		}
	}
}

func main() {
	for i := range words {
		words[i] = uint32(i) * 2654435761
	}
	go tick()
	door, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := door.Accept()
		if err != nil {
			continue
		}
		go serve(c)
	}
}
