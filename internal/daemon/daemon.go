package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"stasis/internal/config"
	"stasis/internal/engine"
	"stasis/internal/health"
	"stasis/internal/peer"
	"stasis/internal/selftest"
)

// Options say what a daemon is made of. Config and Log are needed.
type Options struct {
	Config   *config.Config
	Log      *slog.Logger
	CRIUPath string // "": the first that is new enough
	OnDemand bool   // leave when there is nothing to do
	Library  engine.Library

	// Interceptors see every call before the daemon's own do, such as those that trace calls.
	Interceptors []connect.Interceptor

	// Jobs makes what looks after jobs; nil: there are none.
	Jobs func(*engine.Engine, *slog.Logger) (Jobs, error)

	// of package health, so that tests can do without
	Machine func(ctx context.Context, criuPath string) []health.Result
	Process func(ctx context.Context, pid int) []health.Result
	Full    func(context.Context, *engine.Engine) []health.Result // package selftest

	writeTimeout time.Duration // for tests; 0: writeTimeout
}

// Limits of the daemon that nobody needs to configure.
const (
	maxMessage   = 4 << 20          // bytes of a request
	worthIt      = 1 << 20          // bytes from which an answer is compressed: on a socket less is faster as it is
	headerTime   = 10 * time.Second // to send the headers of a request
	idleConn     = 2 * time.Minute  // after which a connection without a call is closed
	maxHeader    = 64 << 10         // bytes of the headers of a request
	maxStreams   = 250              // calls on one connection at once
	tidyAfter    = 5 * time.Second  // without a call
	writeTimeout = 30 * time.Second // after which a client that takes nothing is given up
	stopMargin   = 30 * time.Second // for what takes no time when the daemon stops, on a machine that is busy
)

// Daemon serves the API.
type Daemon struct {
	opts     Options
	log      *slog.Logger
	engine   *engine.Engine
	jobs     Jobs // nil: none
	registry *prometheus.Registry
	calls    *calls
	lists    lists
	allowed  *allowed
	server   *http.Server
	browsers *browsers
	begun    time.Time

	work       context.Context //nolint:containedctx // of all calls: cancelled when the daemon can wait for them no longer
	cancelWork context.CancelFunc
	follow     context.Context //nolint:containedctx // of the calls that never end by themselves: cancelled when it begins to stop
	cancelView context.CancelFunc
	last       context.Context //nolint:containedctx // of the jobs' last checkpoints: cancelled by Abandon
	cancelLast context.CancelFunc

	stopOnce  sync.Once
	stopping  chan struct{}
	addresses atomic.Pointer[[]string]

	writeTimeout time.Duration
}

// New makes a daemon that does not listen yet.
func New(opts Options) (*Daemon, error) {
	if opts.Library.Dump == nil {
		opts.Library = engine.TheLibrary()
	}
	if opts.Machine == nil {
		opts.Machine, opts.Process, opts.Full = health.Machine, health.Process, selftest.Run
	}
	users, err := allow(opts.Config.Daemon.AllowUsers)
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		opts: opts, log: opts.Log, allowed: users, begun: time.Now(), stopping: make(chan struct{}), registry: prometheus.NewRegistry(),
		writeTimeout: cmp.Or(opts.writeTimeout, writeTimeout),
	}
	d.engine = engine.New(opts.Config, opts.CRIUPath, opts.Library, d.registry)
	d.calls = newCalls(opts.Config.Daemon.MaxCalls, d.registry)
	d.work, d.cancelWork = context.WithCancel(context.Background())
	d.follow, d.cancelView = context.WithCancel(d.work)
	d.last, d.cancelLast = context.WithCancel(context.Background())
	if opts.Jobs != nil {
		if d.jobs, err = opts.Jobs(d.engine, opts.Log); err != nil {
			return nil, fmt.Errorf("begin to look after the jobs: %w", err)
		}
	}
	d.registerGauges()
	d.server = d.newServer()
	d.browsers = d.newBrowsers()
	return d, nil
}

func (d *Daemon) newServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: d.handler(), Protocols: protocols, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: headerTime, IdleTimeout: idleConn, MaxHeaderBytes: maxHeader,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: d.writeTimeout, SendPingTimeout: idleConn},
		BaseContext: func(net.Listener) context.Context { return d.work },
		ConnContext: withPeer,
	}
}

// withPeer notes who is at the other end of a connection. Over TLS that is known after the handshake only (see gate).
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if known, ok := conn.(*knownConn); ok {
		return peer.With(ctx, known.peer)
	}
	return ctx
}

// Serve answers calls until the daemon is stopped, and then returns nil. It closes the listeners.
func (d *Daemon) Serve(listeners ...net.Listener) error {
	var names []string
	for _, l := range listeners {
		names = append(names, l.Addr().String())
	}
	d.addresses.Store(&names)
	d.log.Info("serving", "addresses", names, "on_demand", d.opts.OnDemand)
	if d.opts.Config.Daemon.Page != "" {
		if _, err := d.browsers.start(d); err != nil {
			d.log.Warn("the page is not served", "error", err)
		}
	}
	go d.engine.Catalog.List() // the first look takes a second for ten thousand checkpoints
	go d.tidyWhenIdle()
	if d.opts.OnDemand {
		go d.leaveWhenIdle()
	}
	var group errgroup.Group
	for _, l := range listeners {
		group.Go(func() error {
			if err := d.server.Serve(d.bounded(l)); !errors.Is(err, http.ErrServerClosed) {
				d.Stop()
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	<-d.stopping
	ended := d.end()
	return errors.Join(group.Wait(), ended)
}

// bounded wraps a listener so that each connection says who is at its other end.
func (d *Daemon) bounded(l net.Listener) net.Listener {
	if l.Addr().Network() == "unix" {
		return &knownListener{Listener: l, log: d.log, counts: make(map[uint32]int)}
	}
	return l
}

// Stop makes Serve return: it listens no more, waits for running calls as long as configured, and then cancels them.
func (d *Daemon) Stop() { d.stopOnce.Do(func() { close(d.stopping) }) }

// Abandon cancels what a stopping daemon waits for. Dumps that are cancelled leave their processes as they were.
func (d *Daemon) Abandon() { d.Stop(); d.cancelWork(); d.cancelLast() }

// StopsWithin bounds the time from Stop to the end of Serve: for calls, for giving up those that are late, and for the jobs' last checkpoints.
func (d *Daemon) StopsWithin() time.Duration {
	return 2*d.opts.Config.Daemon.StopTimeout + d.writeTimeout + stopMargin
}

// end takes everything down in the order in which it depends on each other.
func (d *Daemon) end() error {
	d.log.Info("stopping")
	ctx, cancel := context.WithTimeout(d.work, d.opts.Config.Daemon.StopTimeout)
	defer cancel()
	d.cancelView()
	if err := d.browsers.close(); err != nil {
		d.log.Warn("cannot end the page", "error", err)
	}
	err := d.server.Shutdown(ctx)
	if err != nil {
		d.log.Warn("calls are still under way: cancelling them", "error", err)
		d.cancelWork()
		late, lateCancel := context.WithTimeout(context.Background(), d.writeTimeout)
		defer lateCancel()
		if err = d.server.Shutdown(late); err != nil {
			err = errors.Join(err, d.server.Close())
		}
	}
	if d.jobs != nil {
		// With a time of their own: calls that took all of theirs must not cost the jobs their last checkpoints.
		jobs, jobsCancel := context.WithTimeout(d.last, d.opts.Config.Daemon.StopTimeout)
		err = errors.Join(err, d.jobs.Close(jobs))
		jobsCancel()
	}
	d.cancelWork()
	d.engine.Close()
	d.log.Info("stopped")
	return err
}

// tidyWhenIdle gives back to the machine, once after each time that there was something to do, the memory that it took: Go keeps twice of what it
// needs, and gives it back late.
func (d *Daemon) tidyWhenIdle() {
	timer := time.NewTicker(tidyAfter)
	defer timer.Stop()
	tidied := uint64(math.MaxUint64)
	for {
		select {
		case <-d.stopping:
			return
		case <-timer.C:
		}
		dumps, restores := d.engine.Busy()
		if begun := d.calls.begun.Load(); begun != tidied && d.calls.idle() >= tidyAfter && dumps+restores == 0 {
			tidied = begun
			debug.FreeOSMemory()
		}
	}
}

// leaveWhenIdle stops a daemon that was started on demand when it had nothing to do for a while.
func (d *Daemon) leaveWhenIdle() {
	timeout := d.opts.Config.Daemon.IdleTimeout
	timer := time.NewTicker(max(timeout/4, 10*time.Millisecond))
	defer timer.Stop()
	for {
		select {
		case <-d.stopping:
			return
		case <-timer.C:
		}
		if d.calls.idle() < timeout || d.jobs != nil && d.jobs.Needed() {
			continue
		}
		if dumps, restores := d.engine.Busy(); dumps+restores == 0 {
			d.log.Info("leaving: nothing to do", "idle_timeout", timeout)
			d.Stop()
			return
		}
	}
}
