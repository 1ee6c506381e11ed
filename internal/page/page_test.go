package page

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"stasis/internal/peer"
)

// bench is a page whose API says who calls it.
type bench struct {
	*Page
	t   *testing.T
	now time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, now: time.Now()}
	b.Page = New(Options{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return b.now }, API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := peer.From(r.Context())
		if !ok {
			t.Error("a call without a peer")
		}
		_ = json.NewEncoder(w).Encode(who)
	})})
	return b
}

const (
	host = "127.0.0.1:7070"
	list = "/stasis.v1.JobService/List"
)

// ask sends a request as the page would, unless change makes it another one.
func (b *bench) ask(method, path, token, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	b.t.Helper()
	r := httptest.NewRequest(method, "http://"+host+path, strings.NewReader(body))
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Origin", "http://"+host)
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// invite makes a code.
func (b *bench) invite(who peer.Peer) string {
	b.t.Helper()
	link, expires := b.Link(host, who)
	code, ok := strings.CutPrefix(link, "http://"+host+"/#")
	if !ok || len(code) != 43 || !expires.After(b.now) {
		b.t.Fatalf("the link is %s, until %v", link, expires)
	}
	return code
}

// begin exchanges a code.
func (b *bench) begin(code string) (token string, status int) {
	b.t.Helper()
	w := b.ask("POST", "/session", "", `{"code": "`+code+`"}`, nil)
	var answer struct {
		Token string `json:"token"`
	}
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	return answer.Token, w.Code
}

func (b *bench) expect(what string, w *httptest.ResponseRecorder, code int, says string) {
	b.t.Helper()
	if w.Code != code || !strings.Contains(w.Body.String(), says) {
		b.t.Errorf("%s: %d %q, expected %d with %q", what, w.Code, w.Body, code, says)
	}
}

// A call without a token, or with one that the daemon did not give, gets nothing. A code works once, and the call is that of whoever
// asked for the link.
func TestToken(t *testing.T) {
	b := newBench(t)
	b.expect("no token", b.ask("POST", list, "", "{}", nil), http.StatusUnauthorized, "stasis daemon page")
	code := b.invite(peer.Peer{UID: 1000, GID: 100})
	b.expect("a code as a token", b.ask("POST", list, code, "{}", nil), http.StatusUnauthorized, "stasis daemon page")
	token, status := b.begin(code)
	if status != http.StatusOK || token == "" || token == code {
		t.Fatalf("the code gave %q, %d", token, status)
	}
	b.expect("a call", b.ask("POST", list, token, "{}", nil), http.StatusOK, `"UID":1000,"GID":100`)
	if _, status := b.begin(code); status != http.StatusForbidden {
		t.Errorf("a code that was used gave %d", status)
	}
	for _, wrong := range []string{"", token[1:], token + "A", strings.Repeat("A", 43), token[:42] + "*"} {
		if b.ask("POST", list, wrong, "{}", nil).Code != http.StatusUnauthorized {
			t.Errorf("the token %q was accepted for %q", wrong, token)
		}
		if _, status := b.begin(wrong); status == http.StatusOK {
			t.Errorf("the code %q was accepted", wrong)
		}
	}
	// One that a daemon before has given, or somebody else's that serves on this address.
	b.expect("a call of another daemon's", newBench(t).ask("POST", list, token, "{}", nil), http.StatusUnauthorized, "new link")
}

// Codes and sessions end, and there are not any number of them.
func TestEnds(t *testing.T) {
	b := newBench(t)
	root := peer.Peer{}
	code := b.invite(root)
	b.now = b.now.Add(codeLife)
	if _, status := b.begin(code); status != http.StatusForbidden {
		t.Errorf("a code that is too old gave %d", status)
	}
	token, _ := b.begin(b.invite(root))
	for range 3 { // a session that is used lasts
		b.now = b.now.Add(sessionLife - time.Second)
		b.expect("a call in time", b.ask("POST", list, token, "{}", nil), http.StatusOK, "")
	}
	b.now = b.now.Add(sessionLife)
	b.expect("a call after a long time", b.ask("POST", list, token, "{}", nil), http.StatusUnauthorized, "")

	others := b.invite(peer.Peer{UID: 1000})
	first := b.invite(root)
	for range mostCodes {
		b.now = b.now.Add(time.Millisecond)
		b.invite(root)
	}
	if _, status := b.begin(first); status != http.StatusForbidden {
		t.Errorf("after %d more codes the first gave %d", mostCodes, status)
	}
	kept, status := b.begin(others)
	if status != http.StatusOK {
		t.Errorf("another user's code was crowded out: %d", status)
	}
	oldest, _ := b.begin(b.invite(root))
	for range mostTokens {
		b.now = b.now.Add(time.Millisecond)
		b.begin(b.invite(root))
	}
	b.expect("the oldest session of too many", b.ask("POST", list, oldest, "{}", nil), http.StatusUnauthorized, "")
	b.expect("another user's session", b.ask("POST", list, kept, "{}", nil), http.StatusOK, "")
	if len(b.sessions.codes) > 2*mostCodes || len(b.sessions.tokens) > 2*mostTokens {
		t.Errorf("%d codes and %d tokens are kept", len(b.sessions.codes), len(b.sessions.tokens))
	}
}

// A site whose name was made to lead here (DNS rebinding) sends its own name, and gets nothing: not even the page.
func TestNames(t *testing.T) {
	b := newBench(t)
	token, _ := b.begin(b.invite(peer.Peer{}))
	for name, ours := range map[string]bool{
		host: true, "localhost:7070": true, "localhost": true, "[::1]:7070": true, "127.0.0.2:80": true, "127.0.0.1": true,
		"evil.example:7070": false, "evil.example": false, "": false, "127.0.0.1.evil.example:7070": false, "localhost.evil.example": false,
		"10.0.0.1:7070": false, "0.0.0.0:7070": false, "[::]:7070": false, "localhost.:7070": false, "evil.example:localhost": false,
	} {
		for _, method := range []string{"GET", "POST"} {
			target := map[string]string{"GET": "/", "POST": list}[method]
			w := b.ask(method, target, token, "{}", func(r *http.Request) {
				r.Host = name
				if method == "POST" {
					r.Header.Set("Origin", "http://"+name) // it is its own origin
				}
			})
			if (w.Code == http.StatusOK) != ours || !ours && w.Code != http.StatusMisdirectedRequest {
				t.Errorf("%s as %q: %d", method, name, w.Code)
			}
		}
	}
}

// Other sites in the user's browser can neither call, with a token that they have by whatever means, nor embed the page, nor are they
// told by any header that they could.
func TestOtherSites(t *testing.T) {
	b := newBench(t)
	token, _ := b.begin(b.invite(peer.Peer{}))
	code := b.invite(peer.Peer{})
	set := func(pairs ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(pairs); i += 2 {
				if r.Header.Del(pairs[i]); pairs[i+1] != "" {
					r.Header.Set(pairs[i], pairs[i+1])
				}
			}
		}
	}
	for what, change := range map[string]func(*http.Request){
		"another site":                 set("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"),
		"an old browser":               set("Origin", "https://evil.example", "Sec-Fetch-Site", ""),
		"another port":                 set("Origin", "http://127.0.0.1:8080", "Sec-Fetch-Site", "same-site"),
		"another scheme":               set("Origin", "https://"+host, "Sec-Fetch-Site", "cross-site"),
		"a sandboxed frame":            set("Origin", "null", "Sec-Fetch-Site", "cross-site"),
		"without origin":               set("Origin", "", "Sec-Fetch-Site", "cross-site"),
		"a form that leads here":       set("Origin", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"),
		"what the user typed":          set("Origin", "", "Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"),
		"two origins":                  func(r *http.Request) { r.Header["Origin"] = []string{"http://" + host, "https://evil.example"} },
		"an origin that looks like it": set("Origin", "http://"+host+".evil.example", "Sec-Fetch-Site", ""),
	} {
		for _, path := range []string{list, "/session"} {
			w := b.ask("POST", path, token, `{"code": "`+code+`"}`, change)
			b.expect(what+" to "+path, w, http.StatusForbidden, "other sites")
			for name := range w.Header() {
				if strings.HasPrefix(name, "Access-Control") {
					t.Errorf("%s: an answer with %s", what, name)
				}
			}
		}
	}
	// What a form can send without asking first.
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "application/connect+json"} {
		w := b.ask("POST", list, token, "{}", set("Content-Type", kind, "Origin", "", "Sec-Fetch-Site", ""))
		b.expect("content of type "+kind, w, http.StatusUnsupportedMediaType, "JSON")
	}
	w := b.ask("OPTIONS", list, "", "", set("Content-Type", "application/json", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST"))
	if w.Code == http.StatusOK || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("asked whether it may call: %d %v", w.Code, w.Header())
	}
	for _, dest := range []string{"iframe", "image", "script", "object", "empty"} {
		mode := map[bool]string{true: "navigate", false: "no-cors"}[dest == "iframe"]
		b.expect("as "+dest, b.ask("GET", "/", "", "", set("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", mode, "Sec-Fetch-Dest", dest)), http.StatusForbidden, "other sites")
	}
	// The link itself, clicked in a mail or typed.
	for _, site := range []string{"cross-site", "none"} {
		b.expect("a link from "+site, b.ask("GET", "/", "", "", set("Sec-Fetch-Site", site, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")), http.StatusOK, "<!doctype html>")
	}
	if _, status := b.begin(code); status != http.StatusOK {
		t.Error("somebody who was refused has used the code up")
	}
}

// With a token there are some calls, all of which read.
func TestOnlyReads(t *testing.T) {
	b := newBench(t)
	token, _ := b.begin(b.invite(peer.Peer{}))
	for path := range reads {
		b.expect(path, b.ask("POST", path, token, "{}", nil), http.StatusOK, "UID")
		b.expect("GET "+path, b.ask("GET", path, token, "", nil), http.StatusNotFound, "")
	}
	for _, path := range []string{
		"/stasis.v1.CheckpointService/Dump", "/stasis.v1.CheckpointService/Get", "/stasis.v1.CheckpointService/Remove", "/stasis.v1.SystemService/Stop",
		"/stasis.v1.SystemService/Config", "/stasis.v1.SystemService/Page", "/stasis.v1.JobService/Kill", "/stasis.v1.JobService/Logs", "/metrics", "/", "//",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", list + "/", "/x/.." + list,
	} {
		b.expect(path, b.ask("POST", path, token, "{}", nil), http.StatusForbidden, "only looks")
	}
	for _, path := range []string{"/../page.go", "/%2e%2e/page.go", "/web/index.html", "/.", "/session", "/index.html/", "//index.html"} {
		b.expect("GET "+path, b.ask("GET", path, "", "", func(r *http.Request) { r.URL.Path = path }), http.StatusNotFound, "")
	}
	b.expect("DELETE", b.ask("DELETE", "/", token, "", func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }), http.StatusMethodNotAllowed, "")
	if w := b.ask("POST", "/session", "", `{"code": "`+strings.Repeat("x", 1<<20)+`"}`, nil); w.Code != http.StatusBadRequest {
		t.Errorf("a large code: %d", w.Code)
	}
}

var outside = regexp.MustCompile(`(?i)(https?:)?//[a-z0-9]`)

// The page is made of files of its own, with nothing in them that its policy would not let through.
func TestFiles(t *testing.T) {
	b := newBench(t)
	err := fs.WalkDir(b.files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		w := b.ask("GET", "/"+name, "", "", nil)
		text := w.Body.String()
		kind := map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]
		if w.Code != http.StatusOK || kind == "" || w.Header().Get("Content-Type") != kind {
			t.Errorf("%s: %d, %q", name, w.Code, w.Header().Get("Content-Type"))
		}
		for header, value := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if w.Header().Get(header) != value {
				t.Errorf("%s has %s: %q", name, header, w.Header().Get(header))
			}
		}
		if w.Header().Get("Set-Cookie") != "" {
			t.Errorf("%s sets a cookie", name)
		}
		text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "")
		for line := range strings.Lines(text) {
			if found := outside.FindString(strings.TrimSpace(line)); found != "" && !strings.HasPrefix(strings.TrimSpace(line), "//") {
				t.Errorf("%s leads outside: %s", name, line)
			}
		}
		for _, never := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " style=\"", "<script>", " onclick", "document.cookie", "localStorage"} {
			if strings.Contains(text, never) {
				t.Errorf("%s has %s", name, never)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Who is refused again and again does not fill the log.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	p := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil)), API: http.NotFoundHandler()})
	b := &bench{Page: p, t: t}
	for range 1000 {
		b.ask("GET", "/"+strings.Repeat("x", 5000), "", "", func(r *http.Request) { r.Host = "evil.example" })
		b.begin("wrong")
	}
	if n := bytes.Count(log.Bytes(), []byte("\n")); n == 0 || n > 20 {
		t.Errorf("2000 refusals are %d lines in the log", n)
	}
}

// The page is served on loopback or not at all.
func TestListen(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0", "10.1.2.3:0", "localhost:0", "127.0.0.1", "example.com:80", ""} {
		if l, err := Listen(address); err == nil {
			l.Close()
			t.Errorf("%q: it listens on %v", address, l.Addr())
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	response, err := http.Get("http://" + l.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(response.Body)
	response.Body.Close()
	if response.StatusCode != http.StatusOK || !strings.Contains(string(text), "<title>Stasis</title>") {
		t.Errorf("%d: %s", response.StatusCode, text)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("it still listens after its end")
	}
}

// Whatever comes, there is an answer, no panic, and nothing of the API without a token.
func FuzzRequests(f *testing.F) {
	f.Add("GET", "/", "127.0.0.1", "", "", "", "")
	f.Add("POST", list, host, "Bearer x", "application/json", "http://"+host, "{}")
	f.Add("POST", "/session", host, "", "application/json", "", `{"code": 1}`)
	f.Add("POST", "/session", "[::1", "Bearer", "a/b;=", "null", `{"code"`)
	f.Fuzz(func(t *testing.T, method, path, host, authorization, kind, origin, body string) {
		p := New(Options{Log: slog.New(slog.DiscardHandler), API: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Errorf("%s %q reached the API", method, path)
		})})
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Method, r.URL.Path, r.Host = method, path, host
		for name, value := range map[string]string{"Authorization": authorization, "Content-Type": kind, "Origin": origin} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code == http.StatusOK && method != "GET" && method != "HEAD" {
			t.Errorf("%s %q: %s", method, path, w.Body)
		}
	})
}
