package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/bench/rig"
)

const (
	redisClients  = 16
	redisSteady   = 8000 // requests a second of the steady load, about a tenth of what Redis can do
	redisValue    = 1024 // bytes
	redisReady    = 20 * time.Second
	percentile999 = 0.999
)

// redis measures what Redis loses while it is dumped: how many requests it
// serves when all clients ask as fast as they can, and the 99.9th percentile of
// the latency when they ask at a steady rate.
//
// A latency counts from the moment when the request was due, not from when a
// client that had waited for the one before got round to sending it: else a
// standstill would be one slow request for each client and vanish among the
// thousands before and after.
func (b *bench) redis(ctx context.Context) (rows []*row, err error) {
	server, err := b.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rig.End(server.pid)) }()
	if err := server.fill(b.redisKeys()); err != nil {
		return nil, err
	}

	full := &row{ID: "redis-throughput", What: "Redis while dumped, throughput", Unit: requestsEach, Beside: besideCRIU}
	steady := &row{ID: "redis-latency", What: "Redis while dumped, 99.9th percentile latency", Unit: seconds, Beside: besideCRIU}
	for _, measure := range []struct {
		row  *row
		rate int
		of   func([]request, time.Time, time.Time) float64
	}{{full, 0, throughput}, {steady, redisSteady, latency999}} {
		undisturbed, err := b.redisLoad(ctx, server, measure.row, measure.rate, measure.of)
		if err != nil {
			return nil, err
		}
		measure.row.Note = "not dumped " + measure.row.Unit.format(undisturbed)
		measure.row.finish()
	}
	return []*row{full, steady}, nil
}

// redisKeys is how many keys there are: half of the middle size.
func (b *bench) redisKeys() int { return int(b.sizes[1] / 2 / redisValue) }

// redisLoad puts the server under load, dumps it some times in both ways, and
// returns the figure of the time before the first dump.
func (b *bench) redisLoad(ctx context.Context, server *redisServer, r *row, rate int, figure func([]request, time.Time, time.Time) float64) (undisturbed float64, err error) {
	l, err := startLoad(server.address, b.redisKeys(), rate)
	if err != nil {
		return 0, err
	}
	pause := 3 * time.Second
	if b.small {
		pause = 500 * time.Millisecond
	}
	type window struct {
		into       *series
		begun, end time.Time
	}
	var windows []window
	dump := func(into *series, dump dumper) error {
		if err := b.quiet(); err != nil {
			return err
		}
		begun := time.Now()
		took, err := dump(ctx)
		windows = append(windows, window{into, begun, begun.Add(took)})
		time.Sleep(pause) // back to normal before the next
		return err
	}
	begun := time.Now()
	time.Sleep(pause)
	calm := time.Now()
	for i := 0; i < b.ours && err == nil; i++ {
		err = dump(&r.Ours, b.dumpOurs(job{PID: server.pid, TCP: true}))
		if i < b.others && err == nil {
			err = dump(&r.Other, b.dumpStock(server.pid, "--tcp-established"))
		}
	}
	requests, loadErr := l.stop()
	if err := errors.Join(err, loadErr); err != nil {
		return 0, err
	}
	for _, w := range windows {
		w.into.add(figure(requests, w.begun, w.end))
	}
	return figure(requests, begun, calm), nil
}

// redisServer is a running Redis.
type redisServer struct {
	pid     int
	address string
}

// startRedis starts a Redis that keeps nothing on disk, and waits until it answers.
func (b *bench) startRedis(ctx context.Context) (*redisServer, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("%w: scripts/install-deps installs it", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := listener.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	if err := listener.Close(); err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "redis")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
		"--dir", dir, "--logfile", filepath.Join(dir, "redis.log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &redisServer{pid: cmd.Process.Pid, address: address}
	ready, cancel := context.WithTimeout(ctx, redisReady)
	defer cancel()
	err = rig.Wait(ready, "Redis", func() (bool, error) {
		c, err := dialRedis(address)
		if errors.Is(err, unix.ECONNREFUSED) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		return true, c.conn.Close()
	})
	if err != nil {
		return nil, errors.Join(err, rig.End(s.pid))
	}
	return s, nil
}

// fill sets all keys, many to a round trip.
func (s *redisServer) fill(keys int) error {
	c, err := dialRedis(s.address)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	const batch = 1000
	for from := 0; from < keys; from += batch {
		to := min(keys, from+batch)
		var text []byte
		for key := from; key < to; key++ {
			text = appendSet(text, key)
		}
		if _, err := c.conn.Write(text); err != nil {
			return fmt.Errorf("fill Redis: %w", err)
		}
		for range to - from {
			if err := c.reply(); err != nil {
				return fmt.Errorf("fill Redis: %w", err)
			}
		}
	}
	return nil
}

// appendSet appends the command that sets a key to a value of redisValue bytes,
// of the kind that programs keep: words, with numbers between them.
func appendSet(text []byte, key int) []byte {
	name := "key:" + strconv.Itoa(key)
	text = fmt.Appendf(text, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n", len(name), name, redisValue)
	end := len(text) + redisValue
	for number := uint64(key)*0x9e3779b97f4a7c15 + 1; len(text) < end; number = number*6364136223846793005 + 1442695040888963407 {
		text = append(text, `{"customer": `...)
		text = strconv.AppendUint(text, number>>20, 10)
		text = append(text, `, "state": "delivered"}, `...)
	}
	return append(text[:end], "\r\n"...)
}

func appendGet(text []byte, key int) []byte {
	name := "key:" + strconv.Itoa(key)
	return fmt.Appendf(text, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(name), name)
}

// errReply is an error that Redis itself reported.
func errReply(line string) error { return fmt.Errorf("redis says %s", strings.TrimSpace(line)) }
