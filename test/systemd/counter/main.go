// Command counter is the job of the test under systemd: it computes a chain of hashes, of which each needs the one before, and says
// so line by line. A line that is left out, comes twice without a restore, or has a wrong hash shows.
//
//	counter [-file FILE] [-ends]    compute: a line "STEP HASH" five times a second, also appended to FILE
//	counter -check N [-once] < LINES    compare: the lines must be steps of that chain, and end at step N or later; with -once
//	                                    no step may come again, as it does after a restore from a checkpoint of before
//
// With -ends it ends cleanly on SIGTERM, as a well-behaved service does; else SIGTERM kills it.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	file := flag.String("file", "", "append the lines to `FILE`")
	ends := flag.Bool("ends", false, "end cleanly on SIGTERM")
	check := flag.Int("check", 0, "compare the lines of standard input, which have to come to step `N`")
	once := flag.Bool("once", false, "compare: no step may come again")
	flag.Parse()
	var err error
	if *check > 0 {
		err = compare(os.Stdin, *check, *once)
	} else {
		err = compute(*file, *ends)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "counter:", err)
		os.Exit(1)
	}
}

// work is the size of a step: enough memory that a page of it that is lost makes the next hash wrong.
const work = 1 << 20

// chain is the computation.
type chain struct {
	step  int
	state []byte
}

func newChain() *chain { return &chain{state: make([]byte, work)} }

// next goes on by a step: the hash of all memory is written into it at a place of its own choosing.
func (c *chain) next() string {
	c.step++
	sum := sha256.Sum256(c.state)
	at := binary.LittleEndian.Uint64(sum[:]) % (work / sha256.Size) * sha256.Size
	copy(c.state[at:], sum[:])
	return fmt.Sprintf("%d %x", c.step, sum[:8])
}

func compute(file string, ends bool) error {
	out := io.Writer(os.Stdout)
	if file != "" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		out = io.MultiWriter(out, f)
	}
	end := make(chan os.Signal, 1)
	if ends {
		signal.Notify(end, syscall.SIGTERM)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for c := newChain(); ; {
		if _, err := fmt.Fprintln(out, c.next()); err != nil {
			return err
		}
		select {
		case <-end:
			return nil
		case <-tick.C:
		}
	}
}

// compare reads lines, of which some may come again after a restore: what counts is that each is the line of its step, and that
// after each comes the next one or an earlier one. Other lines, such as those of the log itself, are passed over.
func compare(in io.Reader, least int, once bool) error {
	c, known, last, seen := newChain(), []string{""}, 0, 0
	for lines := bufio.NewScanner(in); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		step, _, ok := strings.Cut(line, " ")
		n, err := strconv.Atoi(step)
		if !ok || err != nil || n <= 0 {
			continue
		}
		if n > last+1 || once && n != last+1 {
			return fmt.Errorf("after step %d comes step %d", last, n)
		}
		if last = n; n == len(known) {
			known = append(known, c.next())
		}
		if line != known[n] {
			return fmt.Errorf("%q should be %q", line, known[n])
		}
		seen++
	}
	if last < least {
		return errors.New("it came to step " + strconv.Itoa(last) + " only")
	}
	fmt.Printf("%d lines, the last is step %d, all right\n", seen, last)
	return nil
}
