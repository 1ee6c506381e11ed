package pageserver

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stasis/internal/store/storetest"
)

// authority signs certificates into files.
type authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "the authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// sign makes name.pem and name.key.
func (a *authority) sign(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".pem", "CERTIFICATE", raw)
	a.write(t, name+".key", "PRIVATE KEY", rawKey)
	done, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return done, key
}

func (a *authority) write(t *testing.T, name, kind string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// revoke makes crl.pem.
func (a *authority) revoke(t *testing.T, until time.Time, certs ...*x509.Certificate) {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: until}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	raw, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, "crl.pem", "X509 CRL", raw)
}

func certificateFor(ip string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: ip}, IPAddresses: []net.IP{net.ParseIP(ip)}}
}

func TestTLSLetsInWhoHasACertificate(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	ours.sign(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}})
	ours.sign(t, "named", &x509.Certificate{Subject: pkix.Name{CommonName: "sender.example"}})
	ours.sign(t, "alternative", &x509.Certificate{Subject: pkix.Name{CommonName: "sender.example"}, DNSNames: []string{"other.example"}, IPAddresses: []net.IP{{192, 0, 2, 1}}})
	ours.sign(t, "serverOnly", &x509.Certificate{Subject: pkix.Name{CommonName: "both sides"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	revoked, _ := ours.sign(t, "revoked", &x509.Certificate{Subject: pkix.Name{CommonName: "lost"}})
	other.sign(t, "stranger", &x509.Certificate{Subject: pkix.Name{CommonName: "sender.example"}})
	ours.revoke(t, time.Now().Add(time.Hour), revoked)

	for what, c := range map[string]struct {
		from *authority
		cert string
		name string // that the certificate must be for
		crl  bool
		want string // "": let in
	}{
		"good":                  {ours, "named", "", false, ""},
		"good, with a list":     {ours, "named", "", true, ""},
		"for servers":           {ours, "serverOnly", "", false, ""},
		"none":                  {nil, "", "", false, "certificate"},
		"another authority":     {other, "stranger", "", false, "unknown authority"},
		"revoked":               {ours, "revoked", "", true, "revoked"},
		"common name":           {ours, "named", "sender.example", false, ""},
		"another common name":   {ours, "named", "192.0.2.1", false, "is not for 192.0.2.1"},
		"address":               {ours, "alternative", "192.0.2.1", false, ""},
		"alternatives go first": {ours, "alternative", "sender.example", false, "is not for sender.example"},
	} {
		t.Run(what, func(t *testing.T) {
			files := TLSFiles{CACert: ours.file("ca.pem"), Cert: ours.file("server.pem"), Key: ours.file("server.key"), Name: c.name}
			if c.crl {
				files.CACRL = ours.file("crl.pem")
			}
			config, err := files.Config()
			if err != nil {
				t.Fatal(err)
			}
			client := &tls.Config{InsecureSkipVerify: true} // the server's side is what is tested
			if c.from != nil {
				own, err := tls.LoadX509KeyPair(c.from.file(c.cert+".pem"), c.from.file(c.cert+".key"))
				if err != nil {
					t.Fatal(err)
				}
				client.Certificates = []tls.Certificate{own}
			}
			err = sessionOverTLS(t, config, client)
			if c.want == "" && err != nil {
				t.Errorf("it is turned away: %v", err)
			} else if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("it says: %v; it should speak of %q", err, c.want)
			}
		})
	}
}

// sessionOverTLS sends a page, and returns why it was turned away.
func sessionOverTLS(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	memory := storetest.NewMemory()
	w := newWriter(t, memory, "lz4", nil)
	turned, done := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := Receive(t.Context(), l, ReceiveOptions{Writer: w, ServerOptions: ServerOptions{
			TLS: server, Idle: soon, Note: func(_ string, why error) { turned <- why },
		}})
		done <- err
	}()
	t.Cleanup(func() { l.Close() })
	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(plain, client)
	t.Cleanup(func() { conn.Close() })
	go func() {
		s := &sender{conn, longLayout}
		_, _ = s.Write(bytes.Join([][]byte{
			head{cmdOpen, 0, 0, 0, 5<<8 | 1}.encode(longLayout), head{cmdRun, flagPresent, 1, page, 5<<8 | 1}.encode(longLayout),
			make([]byte, page), head{cmd: cmdClose}.encode(longLayout),
		}, nil))
		readAll(s, make([]byte, 4))
		s.Close()
	}()
	select {
	case err := <-done:
		if err == nil {
			if _, there := memory.Manifest(); there != nil {
				t.Errorf("there is no checkpoint: %v", there)
			}
		}
		return err
	case err := <-turned:
		return err
	case <-time.After(soon):
		return errors.New("nothing happens")
	}
}

func TestTLSFilesAreChecked(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	a.sign(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}})
	other.revoke(t, time.Now().Add(time.Hour))
	a.revoke(t, time.Now().Add(-time.Second))
	good := TLSFiles{CACert: a.file("ca.pem"), Cert: a.file("server.pem"), Key: a.file("server.key")}
	if _, err := good.Config(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(f *TLSFiles)
		want   string
	}{
		"no certificate": {func(f *TLSFiles) { f.Cert = a.file("none") }, "--tls-cert"},
		"another's key":  {func(f *TLSFiles) { f.Key = a.file("ca.key") }, "--tls-key"},
		"no authority":   {func(f *TLSFiles) { f.CACert = a.file("none") }, "--tls-cacert"},
		"not PEM":        {func(f *TLSFiles) { f.CACert = a.file("server.key") }, "--tls-cacert"},
		"no list":        {func(f *TLSFiles) { f.CACRL = a.file("none") }, "--tls-cacrl"},
		"empty list":     {func(f *TLSFiles) { f.CACRL = os.DevNull }, "PEM"},
		"another's list": {func(f *TLSFiles) { f.CACRL = other.file("crl.pem") }, "signed"},
		"old list":       {func(f *TLSFiles) { f.CACRL = a.file("crl.pem") }, "out of date"},
	} {
		f := good
		c.change(&f)
		if _, err := f.Config(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: it says %v; it should speak of %q", what, err, c.want)
		}
	}
}
