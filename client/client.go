// Package client talks to the daemon of Stasis.
//
//	c, err := client.Connect(ctx, client.Options{})
//	…
//	defer c.Close()
//	version, err := c.System.Version(ctx, connect.NewRequest(&stasisv1.VersionRequest{}))
//
// The services and their messages are generated from the definitions in api/; docs/api.md is their reference. Errors are
// *connect.Error; [Explain] makes them errors of the library's kinds, such as stasis.ErrInput, again.
//
// A [Client] may be used from several goroutines at once.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/config"
	"stasis/internal/wire"
)

// DefaultSocket is where a daemon serves that is not configured otherwise.
func DefaultSocket() string { return config.Default().Daemon.Socket }

// Options say which daemon to talk to.
type Options struct {
	// Socket is the path of the daemon's socket; "": DefaultSocket.
	Socket string
	// Address is the host:port of a daemon on another machine, instead of Socket. It needs TLS.
	Address string
	// TLS has the client's certificate and the authority of the daemon's.
	TLS *tls.Config

	// Start is how to start a daemon where none answers on the socket: a program and its arguments, such as "/usr/bin/stasis",
	// "daemon", "start", "--on-demand". Only root can. Empty: there has to be one.
	Start []string
	// StartWithin is how long a daemon may take to begin to serve; 0: 10 s.
	StartWithin time.Duration

	// Interceptors see every call, such as those of connectrpc.com/otelconnect, which carry traces on.
	Interceptors []connect.Interceptor
}

// ErrNoDaemon says that no daemon answers.
var ErrNoDaemon = errors.New("no daemon answers")

// Client is a connection to a daemon.
type Client struct {
	// Checkpoints dumps, restores, and looks after checkpoints.
	Checkpoints stasisv1connect.CheckpointServiceClient
	// Jobs runs commands as jobs.
	Jobs stasisv1connect.JobServiceClient
	// System tells about the daemon.
	System stasisv1connect.SystemServiceClient
	// HTTP is for what is no service, such as /metrics, below BaseURL.
	HTTP    *http.Client
	BaseURL string
}

// Connect finds the daemon, or starts it where that is asked for, and makes sure that it answers. Without a daemon the error is
// ErrNoDaemon.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Socket == "" {
		o.Socket = DefaultSocket()
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	if err = c.hello(ctx); err == nil {
		return c, nil
	}
	var nobody bool
	if err, nobody = explainHello(o, err); !nobody || len(o.Start) == 0 || o.Address != "" {
		c.Close()
		return nil, err
	}
	if err := c.start(ctx, o); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newClient(o Options) (*Client, error) {
	transport := &http.Transport{Protocols: new(http.Protocols), MaxResponseHeaderBytes: 1 << 20, IdleConnTimeout: time.Minute}
	c := &Client{HTTP: &http.Client{Transport: transport}}
	if o.Address != "" {
		if o.TLS == nil || len(o.TLS.Certificates) == 0 && o.TLS.GetClientCertificate == nil {
			return nil, errors.New("a daemon on another machine is called over mutual TLS only: give a certificate")
		}
		transport.TLSClientConfig = o.TLS.Clone()
		transport.Protocols.SetHTTP2(true)
		c.BaseURL = "https://" + o.Address
	} else {
		transport.Protocols.SetUnencryptedHTTP2(true)
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", o.Socket)
		}
		c.BaseURL = "http://stasis"
	}
	with := connect.WithInterceptors(o.Interceptors...)
	c.Checkpoints = stasisv1connect.NewCheckpointServiceClient(c.HTTP, c.BaseURL, with)
	c.Jobs = stasisv1connect.NewJobServiceClient(c.HTTP, c.BaseURL, with)
	c.System = stasisv1connect.NewSystemServiceClient(c.HTTP, c.BaseURL, with)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// hello is the cheapest call there is.
func (c *Client) hello(ctx context.Context) error {
	_, err := c.System.Status(ctx, connect.NewRequest(&v1.StatusRequest{}))
	return err //nolint:wrapcheck // Connect explains it
}

// explainHello says why no daemon answers, and whether that is because there is none.
func explainHello(o Options, err error) (_ error, nobody bool) {
	switch {
	case o.Address != "":
		return fmt.Errorf("%w at %s: %w", ErrNoDaemon, o.Address, err), false
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), justKilled(err):
		return fmt.Errorf("%w on %s: start one with \"stasis daemon start\"", ErrNoDaemon, o.Socket), true
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w to you on %s: root can allow you to call it (daemon.allow_users)", ErrNoDaemon, o.Socket), false
	}
	return Explain(err), false
}

// justKilled says whether a connection was made with a daemon that was killed at that moment: the end shows while the question is
// sent, while the answer is awaited, or to the library, before either.
func justKilled(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || connect.CodeOf(err) == connect.CodeUnavailable && !connect.IsWireError(err)
}

// start starts a daemon and waits until it answers. Several programs may do that at once: one of the daemons gets the socket, and the
// others leave.
func (c *Client) start(ctx context.Context, o Options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w on %s, and only root can start one: stasis daemon start", ErrNoDaemon, o.Socket)
	}
	within := o.StartWithin
	if within == 0 {
		within = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	// It reports on standard error until it serves; then it lets go of it.
	report, told, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start a daemon: %w", err)
	}
	defer report.Close()
	cmd := exec.Command(o.Start[0], o.Start[1:]...) //nolint:noctx // it outlives this program
	cmd.Dir, cmd.SysProcAttr, cmd.Stderr = "/", &syscall.SysProcAttr{Setsid: true}, told
	err = cmd.Start()
	told.Close()
	if err != nil {
		return fmt.Errorf("start a daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		lastErr := c.hello(ctx)
		if lastErr == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon that was started does not answer within %v: %w", within, lastErr)
		case err := <-ended:
			if err == nil { // it found another one
				ended = nil
				continue
			}
			_ = report.SetReadDeadline(time.Now().Add(time.Second))
			text := make([]byte, 4096)
			n, _ := report.Read(text)
			return fmt.Errorf("the daemon ended at once (%w): %s", err, text[:n])
		case <-tick.C:
		}
	}
}

// Explain makes an error of the daemon one of the library's kinds again: stasis.ErrInput, ErrProcess, ErrDamaged, ErrConflict. Other
// errors stay as they are.
func Explain(err error) error { return wire.FromError(err) }
