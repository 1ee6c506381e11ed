package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), name: name}
	a.cert, a.key = a.make(name, true)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// make writes a certificate, signed by the authority or by itself, and its key.
func (a *authority) make(name string, self bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true, IsCA: self, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent, signer := a.cert, a.key
	if self {
		parent, signer = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	check(a.t, err)
	der, err := x509.MarshalECPrivateKey(key)
	check(a.t, err)
	check(a.t, os.WriteFile(a.file(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600))
	check(a.t, os.WriteFile(a.file(name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
	cert, err := x509.ParseCertificate(raw)
	check(a.t, err)
	return cert, key
}

// client is the TLS of a client that trusts this authority and shows a certificate, or none.
func (a *authority) client(certificate string, of *authority) *tls.Config {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if of != nil {
		pair, err := tls.LoadX509KeyPair(of.file(certificate+".pem"), of.file(certificate+"-key.pem"))
		check(a.t, err)
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Over TCP there is nothing without a certificate of the daemon's authority; with one there is everything.
func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	ours.make("daemon", false)
	ours.make("client", false)
	theirs.make("client", false)
	b := serve(t, func(o *Options) {
		fake(nil)(o)
		d := &o.Config.Daemon
		d.TCP, d.TLSCert, d.TLSKey, d.TLSCA = "127.0.0.1:0", ours.file("daemon.pem"), ours.file("daemon-key.pem"), ours.file("ours.pem")
	})
	until(t, "it serves", func() bool { return b.addresses.Load() != nil })
	address := (*b.addresses.Load())[1]

	c, err := client.Connect(t.Context(), client.Options{Address: address, TLS: ours.client("client", ours)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.System.Config(t.Context(), connect.NewRequest(&v1.ConfigRequest{})); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	old := ours.client("client", ours)
	old.MaxVersion = tls.VersionTLS12
	for what, config := range map[string]*tls.Config{
		"certificate of another authority": ours.client("client", theirs),
		"old TLS":                          old,
		"no certificate":                   ours.client("", nil),
	} {
		transport := &http.Transport{TLSClientConfig: config}
		response, err := (&http.Client{Transport: transport}).Get("https://" + address + "/metrics")
		if err == nil {
			response.Body.Close()
			t.Errorf("%s: status %d", what, response.StatusCode)
		}
		transport.CloseIdleConnections()
	}
	if _, err := client.Connect(t.Context(), client.Options{Address: address}); err == nil || !strings.Contains(err.Error(), "mutual TLS only") {
		t.Errorf("without TLS: %v", err)
	}
	response, err := http.Get("http://" + address + "/stasis.v1.SystemService/Version")
	if err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest { // Go's answer to HTTP on a port for HTTPS
			t.Errorf("plain HTTP: status %d", response.StatusCode)
		}
	}
}

// A request that is larger than any that makes sense is refused, also where it is small before it is decompressed.
func TestLargeRequests(t *testing.T) {
	b := serve(t, fake(nil))
	c := b.checkpoints(t, 0)
	_, err := c.Get(t.Context(), connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: strings.Repeat("x", maxMessage+1)}))
	expect(t, "large", err, connect.CodeResourceExhausted)
	squeezed := b.compressing(t)
	_, err = squeezed.Get(t.Context(), connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: strings.Repeat("x", 10*maxMessage)}))
	expect(t, "large when decompressed", err, connect.CodeResourceExhausted)
	many := make([]string, maxRemove+1)
	_, err = c.Remove(t.Context(), connect.NewRequest(&v1.RemoveCheckpointsRequest{Checkpoints: many}))
	expect(t, "many", err, connect.CodeInvalidArgument)
}
