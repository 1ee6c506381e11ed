package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/user"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/peer"
	"stasis/internal/wire"
)

// allowed are the users that may call.
type allowed struct {
	all  bool
	uids map[uint32]bool
}

// allow reads names and numbers of users. One that does not exist is a mistake that is better found now.
func allow(names []string) (*allowed, error) {
	a := &allowed{uids: map[uint32]bool{0: true}}
	for _, name := range names {
		if name == "*" {
			a.all = true
			continue
		}
		number := name
		if _, err := strconv.ParseUint(name, 10, 32); err != nil {
			found, err := user.Lookup(name)
			if err != nil {
				return nil, fmt.Errorf("daemon.allow_users: %w: give names or numbers of users, or *", err)
			}
			number = found.Uid
		}
		uid, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("daemon.allow_users: user %s has the number %q", name, number)
		}
		a.uids[uint32(uid)] = true
	}
	return a, nil
}

func (a *allowed) may(p peer.Peer) bool { return a.all || a.uids[p.UID] }

// calls counts what is under way.
type calls struct {
	most int // of one user

	begun atomic.Uint64 // so far

	mu    sync.Mutex
	users map[uint32]int // guarded by mu
	all   int            // guarded by mu
	last  time.Time      // guarded by mu: when the last one ended

	total   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newCalls(most int, registry prometheus.Registerer) *calls {
	c := &calls{
		most: most, users: make(map[uint32]int), last: time.Now(),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stasis_calls_total", Help: "Calls of the API that have ended, by method and code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stasis_call_seconds", Help: "How long calls of the API took.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"method"}),
	}
	registry.MustRegister(c.total, c.seconds)
	return c
}

func (c *calls) begin(p peer.Peer) (end func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most > 0 && !p.Root() && c.users[p.UID] >= c.most {
		return nil, false
	}
	c.users[p.UID]++
	c.all++
	c.begun.Add(1)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.users[p.UID]--; c.users[p.UID] == 0 {
			delete(c.users, p.UID)
		}
		c.all--
		c.last = time.Now()
	}, true
}

// idle is how long there has been no call.
func (c *calls) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all > 0 {
		return 0
	}
	return time.Since(c.last)
}

// endless are the methods that end only when somebody ends them; a daemon that stops does not wait for them.
var endless = map[string]bool{
	stasisv1connect.JobServiceLogsProcedure:                          true,
	stasisv1connect.JobServiceAttachProcedure:                        true,
	stasisv1connect.JobServiceEventsProcedure:                        true,
	"/grpc.health.v1.Health/Watch":                                   true,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      true,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": true,
}

// gate lets allowed peers in.
func (d *Daemon) gate(next http.Handler) http.Handler {
	refusal := connect.NewErrorWriter()
	refuse := func(w http.ResponseWriter, r *http.Request, err error) {
		d.log.Warn("refused a call", "method", r.URL.Path, "error", err)
		if !refusal.IsSupported(r) {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if err := refusal.Write(w, r, wire.Error(err)); err != nil {
			d.log.Debug("could not tell of a refusal", "error", err)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := d.who(r)
		if err != nil {
			refuse(w, r, err)
			return
		}
		end, ok := d.calls.begin(who)
		if !ok {
			refuse(w, r, fmt.Errorf("%w: user %d has %d calls under way (daemon.max_calls): wait for one to end", wire.ErrLimit, who.UID, d.calls.most))
			return
		}
		defer end()
		ctx := peer.With(r.Context(), who)
		if endless[r.URL.Path] {
			following, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(d.follow, cancel)()
			ctx = following
		}
		next.ServeHTTP(&deadlineWriter{ResponseWriter: w, control: http.NewResponseController(w), timeout: d.writeTimeout}, r.WithContext(ctx))
	})
}

// who finds out who calls, and whether he may.
func (d *Daemon) who(r *http.Request) (peer.Peer, error) {
	if r.TLS != nil {
		// The handshake has verified the certificate against daemon.tls_ca; who has one may do everything.
		if len(r.TLS.VerifiedChains) == 0 {
			return peer.Peer{}, fmt.Errorf("%w: no certificate", wire.ErrDenied)
		}
		return peer.Peer{Name: r.TLS.PeerCertificates[0].Subject.CommonName}, nil
	}
	who, ok := peer.From(r.Context())
	switch {
	case !ok:
		return who, fmt.Errorf("%w: nobody knows who calls", wire.ErrDenied)
	case !d.allowed.may(who):
		return who, fmt.Errorf("%w: user %d may not call this daemon: root can allow it (daemon.allow_users)", wire.ErrDenied, who.UID)
	}
	return who, nil
}

// guard answers a call whose handler panics, and lets the daemon live.
func (d *Daemon) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // the server's own way to end a connection
			default:
				d.log.Error("a call panicked", "method", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, "internal error: the daemon's log has more", http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// recovered is what the caller gets of a panic in a service.
func (d *Daemon) recovered(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
	d.log.Error("a call panicked", "method", spec.Procedure, "panic", p, "stack", string(debug.Stack()))
	return connect.NewError(connect.CodeInternal, errors.New("internal error: the daemon's log has more"))
}

// deadlineWriter gives each write a deadline, so that a client that does not read ends its call and nothing else. A timer of its own costs
// nothing as long as writes go through; setting the connection's deadline before each would wake the goroutine that serves it.
type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	timer   *time.Timer // of the write under way; nil: there was none yet

	mu      sync.Mutex
	writing bool // guarded by mu
}

func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *deadlineWriter) Write(p []byte) (int, error) {
	defer w.within()()
	return w.ResponseWriter.Write(p) //nolint:wrapcheck // the server's own
}

// Flush sends what is buffered; connect calls it after each message of a stream.
func (w *deadlineWriter) Flush() {
	defer w.within()()
	_ = w.control.Flush() // the next write fails as well
}

// within ends what is written after the timeout. Between its messages a stream may be silent for long.
func (w *deadlineWriter) within() (done func()) {
	w.set(true)
	if w.timer == nil {
		w.timer = time.AfterFunc(w.timeout, w.giveUp)
	} else {
		w.timer.Reset(w.timeout)
	}
	return func() {
		w.timer.Stop()
		w.set(false)
	}
}

func (w *deadlineWriter) set(writing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = writing
}

// giveUp makes the write under way fail. After the end of the call there is nothing left to touch.
func (w *deadlineWriter) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing {
		_ = w.control.SetWriteDeadline(time.Unix(1, 0))
	}
}
