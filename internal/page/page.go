package page

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/peer"
)

// Limits of the page's server. What a browser sends is small.
const (
	maxRequest = 16 << 10         // bytes of a request's body
	maxHeader  = 16 << 10         // bytes of its headers
	maxConns   = 64               // connections at once; more wait
	headerTime = 5 * time.Second  // to send the headers
	readTime   = 10 * time.Second // to send all of it
	writeTime  = 30 * time.Second // to take the answer
	idleTime   = 30 * time.Second // after which a silent connection is closed
)

//go:embed web
var embedded embed.FS

// reads are the calls that the page makes. There is none among them that changes anything, or that gives a byte of memory.
var reads = map[string]bool{
	stasisv1connect.SystemServiceVersionProcedure:    true,
	stasisv1connect.SystemServiceStatusProcedure:     true,
	stasisv1connect.JobServiceListProcedure:          true,
	stasisv1connect.CheckpointServiceGroupsProcedure: true,
	stasisv1connect.CheckpointServiceListProcedure:   true,
	stasisv1connect.CheckpointServiceMapProcedure:    true,
}

// types are those of the page's files. The machine's own tables of types differ.
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// Options say what a page shows.
type Options struct {
	API http.Handler // answers calls of the API for the peer in their context (package peer)
	Log *slog.Logger
	Now func() time.Time // for tests; nil: time.Now
}

// Page is the page of one daemon.
type Page struct {
	log      *slog.Logger
	api      http.Handler
	files    fs.FS
	sessions *sessions
	warn     rate.Sometimes // any user of the machine can be refused as often as he likes, and must not fill the log
	server   *http.Server
}

// New makes a page that is not served yet.
func New(o Options) *Page {
	now := o.Now
	if now == nil {
		now = time.Now
	}
	files, err := fs.Sub(embedded, "web")
	if err != nil {
		panic(err) // it is embedded
	}
	p := &Page{log: o.Log, api: o.API, files: files, sessions: newSessions(now), warn: rate.Sometimes{First: 10, Interval: time.Minute}}
	p.server = &http.Server{
		Handler: p, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return p
}

// Listen begins to listen on an address with a loopback IP.
func Listen(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("the page's address %q: %w", address, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("the page's address %q is no loopback address: others on the network could see it", address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve the page: %w", err)
	}
	return netutil.LimitListener(l, maxConns), nil
}

// Serve answers requests until Close, and closes the listener.
func (p *Page) Serve(l net.Listener) error {
	if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

// Close ends Serve, and all connections.
func (p *Page) Close() error {
	return p.server.Close()
}

// Link makes a link that lets whoever opens it first see what a peer may see. address is where the page is served.
func (p *Page) Link(address string, who peer.Peer) (url string, expires time.Time) {
	code, expires := p.sessions.invite(who)
	return "http://" + address + "/#" + code, expires
}

// ServeHTTP answers one request.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders(w.Header())
	if why, code := guard(r); why != "" {
		p.refused("path", r.URL.Path, "why", why)
		http.Error(w, why, code)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		p.serveFile(w, r)
	case r.Method != http.MethodPost:
		http.Error(w, "there is only GET and POST", http.StatusMethodNotAllowed)
	case r.URL.Path == "/session":
		p.begin(w, r)
	default:
		p.call(w, r)
	}
}

// refused notes a refusal, but not each of many.
func (p *Page) refused(attributes ...any) {
	p.warn.Do(func() {
		p.log.Warn("refused a request for the page (of many within a minute only the first is noted)", attributes...)
	})
}

// serveFile serves what the page is made of, to anybody.
func (p *Page) serveFile(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "" {
		name = "index.html"
	}
	text, err := fs.ReadFile(p.files, name)
	if err != nil || !fs.ValidPath(name) {
		http.Error(w, "there is no such file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", types[path.Ext(name)])
	_, _ = w.Write(text)
}

// begin exchanges a code for the token of a session.
func (p *Page) begin(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Code string `json:"code"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, "that is no code", http.StatusBadRequest)
		return
	}
	token, who, ok := p.sessions.begin(request.Code)
	if !ok {
		p.refused("why", "a code that is unknown, too old, or was used before")
		http.Error(w, `this link was used before, or is too old: "stasis daemon page" gives a new one`, http.StatusForbidden)
		return
	}
	p.log.Info("the page was opened", "peer", who.String())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"token": token})
}

// call answers a call of the API for the peer of the session.
func (p *Page) call(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		http.Error(w, `there is no token: "stasis daemon page" gives a link`, http.StatusUnauthorized)
		return
	}
	who, ok := p.sessions.find(token)
	switch {
	case !ok:
		http.Error(w, `this daemon does not know the token: "stasis daemon page" gives a new link`, http.StatusUnauthorized)
	case !reads[r.URL.Path]:
		http.Error(w, "the page only looks: this call is for the daemon's socket", http.StatusForbidden)
	default:
		p.api.ServeHTTP(w, r.WithContext(peer.With(r.Context(), peer.Peer{UID: who.UID, GID: who.GID, Name: "the page"})))
	}
}
