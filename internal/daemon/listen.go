package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/config"
	"stasis/internal/peer"
	"stasis/internal/trust"
)

// ErrRunning: another daemon serves there already.
var ErrRunning = errors.New("a daemon runs already")

// firstFD is the first descriptor that systemd hands over, SD_LISTEN_FDS_START of sd_listen_fds(3).
const firstFD = 3

// Listening is what a daemon listens on, and the lock that makes it the only one.
type Listening struct {
	Listeners []net.Listener
	lock      *os.File
}

// Close gives the lock back, last of all. The listeners are closed by Serve, or here where it was never called.
func (l *Listening) Close() {
	for _, one := range l.Listeners {
		_ = one.Close() // mostly closed already
	}
	if l.lock != nil {
		_ = l.lock.Close()
	}
}

// Listen begins to listen as configured: on the socket that systemd hands over, or on one of its own, which replaces what an ended daemon
// has left; and on TCP with mutual TLS. wait is how long another daemon, which may be stopping, is given; after it the error is ErrRunning.
func Listen(c *config.Daemon, wait time.Duration) (_ *Listening, err error) {
	l := new(Listening)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for the socket: %w: set daemon.socket to another place", err)
	}
	if err := rootsAlone(filepath.Dir(c.Socket)); err != nil {
		return nil, err
	}
	if l.lock, err = lock(c.Socket+".lock", wait); err != nil {
		return nil, err
	}
	handed, err := handedOver()
	if err != nil {
		return nil, err
	}
	if l.Listeners = handed; len(handed) == 0 {
		own, err := listenUnix(c)
		if err != nil {
			return nil, err
		}
		l.Listeners = append(l.Listeners, own)
	}
	if c.TCP != "" {
		secure, err := tlsConfig(c)
		if err != nil {
			return nil, err
		}
		plain, err := net.Listen("tcp", c.TCP)
		if err != nil {
			return nil, fmt.Errorf("listen on daemon.tcp: %w", err)
		}
		l.Listeners = append(l.Listeners, tls.NewListener(plain, secure))
	}
	return l, nil
}

// rootsAlone refuses a folder in which, or in whose place, somebody else could put a socket of his own while no daemon runs: what calls
// there says what it has in its environment. The sticky bit of a folder such as /tmp does not keep him from that.
func rootsAlone(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("the folder for the socket, %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() && st.Uid != 0 || st.Mode&0o022 != 0 {
		return fmt.Errorf("the folder for the socket, %s, can be written by others: choose one that is root's alone (daemon.socket)", dir)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	way := (*trust.Error)(nil)
	if err := trust.Way(dir); errors.As(err, &way) {
		return fmt.Errorf("the folder for the socket, %s, can be replaced by others: %s %s: choose one that is root's alone (daemon.socket)", dir, way.Path, way.Why)
	} else if err != nil {
		return fmt.Errorf("the folder for the socket, %s: %w", dir, err)
	}
	return nil
}

// lock makes this daemon the only one for its socket. The lock goes with the process, however that ends.
func lock(path string, wait time.Duration) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the socket: %w", err)
	}
	for end := time.Now().Add(wait); ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Now().After(end) {
			holder, _ := os.ReadFile(path)
			_ = file.Close()
			return nil, fmt.Errorf("%w (process %s): stop it with \"stasis daemon stop\", or choose another daemon.socket", ErrRunning, holder)
		}
		<-time.After(20 * time.Millisecond) // flock(2) cannot wait with a deadline
	}
	if err := file.Truncate(0); err == nil {
		_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0) // for people only
	}
	return file, nil
}

// listenUnix makes the socket. The lock is held, so that what is at its path was left by a daemon that has ended.
func listenUnix(c *config.Daemon) (net.Listener, error) {
	switch info, err := os.Lstat(c.Socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at the socket: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("%s is there and is no socket: remove it, or choose another daemon.socket", c.Socket)
	default:
		if conn, err := net.DialTimeout("unix", c.Socket, time.Second); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%w: something else answers on %s", ErrRunning, c.Socket)
		}
		if err := os.Remove(c.Socket); err != nil {
			return nil, fmt.Errorf("replace the socket of an ended daemon: %w", err)
		}
	}
	mode := os.FileMode(0o600)
	if len(c.AllowUsers) > 0 {
		mode = 0o666 // the gate asks each who he is
	}
	old := unix.Umask(0o177) // nobody gets in before the mode is what it should be
	l, err := net.Listen("unix", c.Socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", c.Socket, err)
	}
	if err := os.Chmod(c.Socket, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", c.Socket, err), l.Close())
	}
	return l, nil
}

// handedOver gives the sockets that systemd opened for this process (sd_listen_fds(3)). Processes that it starts do not get them.
func handedOver() ([]net.Listener, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	if pid != os.Getpid() {
		return nil, nil
	}
	var list []net.Listener
	for fd := firstFD; fd < firstFD+n; fd++ {
		unix.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), "socket "+strconv.Itoa(fd))
		l, err := net.FileListener(file)
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("take over socket %d of systemd: %w", fd, err)
		}
		if own, ok := l.(*net.UnixListener); ok {
			own.SetUnlinkOnClose(false) // it is systemd's
		} else {
			return nil, fmt.Errorf("systemd handed over %s, which is no Unix socket: TCP is served with TLS only (daemon.tcp)", l.Addr())
		}
		list = append(list, l)
	}
	return list, nil
}

// tlsConfig is mutual TLS as configured: the daemon shows its certificate, and takes only clients with one of the configured authority.
func tlsConfig(c *config.Daemon) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("read daemon.tls_cert and daemon.tls_key: %w", err)
	}
	pem, err := os.ReadFile(c.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("read daemon.tls_ca: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("daemon.tls_ca: %s holds no certificate in PEM", c.TLSCA)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: authority, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
	}, nil
}

// Notify tells systemd how the daemon is, such as READY=1 (sd_notify(3)). Without systemd it does nothing.
func Notify(state string, log *slog.Logger) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		_ = conn.Close()
	}
	if err != nil {
		log.Warn("cannot tell systemd", "state", state, "error", err)
	}
}

// maxConns bounds the connections of one user; root's calls are bounded by its own sense.
const (
	maxConns     = 128
	maxRootConns = 4096
)

// knownListener asks the kernel who connects, and refuses users that have too many connections.
type knownListener struct {
	net.Listener
	log *slog.Logger

	mu     sync.Mutex
	counts map[uint32]int // guarded by mu: connections by user
}

// knownConn is a connection with its peer.
type knownConn struct {
	net.Conn
	peer peer.Peer
	once sync.Once
	gone func()
}

func (c *knownConn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close() //nolint:wrapcheck // the server's own
}

// Accept waits for a connection of somebody who may have one more.
func (l *knownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // the server knows it
		}
		known, err := l.know(conn)
		if err == nil {
			return known, nil
		}
		l.log.Warn("refused a connection", "error", err)
		_ = conn.Close()
	}
}

func (l *knownListener) know(conn net.Conn) (net.Conn, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%T is no Unix socket", conn)
	}
	who, err := peer.Of(socket)
	if err != nil {
		return nil, err
	}
	most := maxConns
	if who.Root() {
		most = maxRootConns
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[who.UID] >= most {
		return nil, fmt.Errorf("%v has %d connections already", who, most)
	}
	l.counts[who.UID]++
	return &knownConn{Conn: conn, peer: who, gone: func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.counts[who.UID]--; l.counts[who.UID] == 0 {
			delete(l.counts, who.UID)
		}
	}}, nil
}
