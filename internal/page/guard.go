package page

import (
	"mime"
	"net"
	"net/http"
	"strings"
)

// policy lets the page load what is its own and nothing else, run no script that stands in the document, and be framed by nobody.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

func setHeaders(h http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy":      policy,
		"X-Frame-Options":              "DENY",
		"X-Content-Type-Options":       "nosniff",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Cache-Control":                "no-store",
		"Permissions-Policy":           "camera=(), geolocation=(), microphone=(), usb=()",
	} {
		h.Set(name, value)
	}
}

// guard looks at what browsers say of who asks. It returns why a request is refused, and the status; "" lets it through.
//
//   - Host is the name in the address line. A site whose name was made to mean 127.0.0.1 (DNS rebinding) has its own name there.
//   - Origin is where the script that asks is from. Only the page's own may ask.
//   - Sec-Fetch-Site says the same of requests that have no Origin, such as images. From outside of the page somebody can
//     follow a link to it, and no more.
func guard(r *http.Request) (why string, code int) {
	if !ourHost(r.Host) {
		return "this page has no such name: open it by its loopback address", http.StatusMisdirectedRequest
	}
	if origin, sent := r.Header["Origin"]; sent && (len(origin) != 1 || origin[0] != "http://"+r.Host) {
		return "other sites may not ask here", http.StatusForbidden
	}
	site, get := r.Header.Get("Sec-Fetch-Site"), r.Method == http.MethodGet || r.Method == http.MethodHead
	switch site {
	case "", "same-origin": // "": no browser, or an old one
	default:
		if !get || r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Header.Get("Sec-Fetch-Dest") != "document" {
			return "other sites may not ask here", http.StatusForbidden
		}
	}
	// What a form on another site can send is never JSON. A browser asks before it sends that, and nobody answers.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); !get && (err != nil || kind != "application/json") {
		return "what is sent here is JSON (Content-Type: application/json)", http.StatusUnsupportedMediaType
	}
	return "", 0
}

// ourHost says whether a Host header names the loopback interface, and so no site's name.
func ourHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return ip != nil && ip.IsLoopback()
}
