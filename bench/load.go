package main

import (
	"bufio"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// redisConn is a connection to Redis.
type redisConn struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialRedis(address string) (*redisConn, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil, err
	}
	return &redisConn{conn, bufio.NewReaderSize(conn, 16<<10)}, nil
}

// reply reads the reply to one command and drops its content.
func (c *redisConn) reply() error {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	switch line[0] {
	case '-':
		return errReply(line)
	case '$':
		length, err := strconv.Atoi(strings.TrimSpace(line[1:]))
		if err != nil {
			return errReply(line)
		}
		if length >= 0 {
			_, err = c.in.Discard(length + len("\r\n"))
		}
		return err
	}
	return nil
}

// request is one that was served.
type request struct {
	due, done time.Time
}

// load is a number of clients at work.
type load struct {
	ending  atomic.Bool
	clients sync.WaitGroup

	mu       sync.Mutex
	requests []request // guarded by mu
	failed   error     // guarded by mu
}

// startLoad starts the clients. With rate 0 each asks as fast as it is
// answered; else all of them together ask that often in a second.
func startLoad(address string, keys, rate int) (*load, error) {
	l := &load{}
	var conns []*redisConn
	for range redisClients {
		c, err := dialRedis(address)
		if err != nil {
			for _, c := range conns {
				c.conn.Close()
			}
			return nil, err
		}
		conns = append(conns, c)
	}
	for i, c := range conns {
		l.clients.Go(func() { l.client(c, i, keys, rate) })
	}
	return l, nil
}

// stop ends the clients and returns what they did.
func (l *load) stop() ([]request, error) {
	l.ending.Store(true)
	l.clients.Wait()
	return l.requests, l.failed
}

// client sets and gets random keys until the load ends.
func (l *load) client(c *redisConn, number, keys, rate int) {
	defer c.conn.Close()
	var served []request
	var err error
	text := make([]byte, 0, 2*redisValue)
	random := rand.New(rand.NewPCG(uint64(number), 1))
	begun := time.Now()
	for i := 0; !l.ending.Load() && err == nil; i++ {
		due := time.Now()
		if rate > 0 {
			// The clients take turns, evenly spread.
			due = begun.Add(time.Duration(i*redisClients+number) * time.Second / time.Duration(rate))
			time.Sleep(time.Until(due))
		}
		key := random.IntN(keys)
		if text = text[:0]; i%2 == 0 {
			text = appendSet(text, key)
		} else {
			text = appendGet(text, key)
		}
		if err = c.ask(text); err == nil {
			served = append(served, request{due, time.Now()})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, served...)
	l.failed = errors.Join(l.failed, err)
}

func (c *redisConn) ask(text []byte) error {
	if _, err := c.conn.Write(text); err != nil {
		return err
	}
	err := c.reply()
	if errors.Is(err, io.EOF) {
		return errors.New("redis closed the connection")
	}
	return err
}

// throughput is how many requests a second were served between two times.
func throughput(all []request, begun, end time.Time) float64 {
	count := 0
	for _, r := range all {
		if r.done.After(begun) && r.done.Before(end) {
			count++
		}
	}
	return float64(count) / end.Sub(begun).Seconds()
}

// latency999 is the 99.9th percentile, in seconds, of the latency of the
// requests that were due between two times.
func latency999(all []request, begun, end time.Time) float64 {
	var latencies []float64
	for _, r := range all {
		if r.due.After(begun) && r.due.Before(end) {
			latencies = append(latencies, r.done.Sub(r.due).Seconds())
		}
	}
	if len(latencies) == 0 {
		return 0
	}
	slices.Sort(latencies)
	return latencies[min(len(latencies)-1, int(percentile999*float64(len(latencies))))]
}
