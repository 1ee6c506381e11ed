package pageserver

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Where CRIU looks for its certificates (criu(8)).
const (
	DefaultCACert = "/etc/pki/CA/cacert.pem"
	DefaultCACRL  = "/etc/pki/CA/cacrl.pem"
	DefaultCert   = "/etc/pki/criu/cert.pem"
	DefaultKey    = "/etc/pki/criu/private/key.pem"
)

// TLSFiles are the files for TLS, PEM all of them. An empty path is CRIU's default.
type TLSFiles struct {
	CACert string // authorities that may vouch for a peer; without it and without the default file nobody can connect
	CACRL  string // certificates that were revoked; the default may be missing
	Cert   string // of this server
	Key    string
	// Name is what the peer's certificate must be for: a host name or an IP address; "": any name. CRIU compares with --address.
	Name string
}

// Config reads the files. Both sides show a certificate.
//
// Unlike CRIU it never trusts the authorities of the system: anybody gets a certificate from those, and everybody who has one
// could send memory that is to be restored here.
func (f TLSFiles) Config() (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(orDefault(f.Cert, DefaultCert), orDefault(f.Key, DefaultKey))
	if err != nil {
		return nil, fmt.Errorf("TLS: this server's certificate and key (--tls-cert, --tls-key): %w", err)
	}
	text, err := os.ReadFile(orDefault(f.CACert, DefaultCACert))
	if err != nil {
		return nil, fmt.Errorf("TLS: the authority that vouches for senders (--tls-cacert): %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("TLS: there is no certificate in %s (--tls-cacert): it must be PEM", orDefault(f.CACert, DefaultCACert))
	}
	revoked, err := f.revocations(text)
	if err != nil {
		return nil, fmt.Errorf("TLS: the list of revoked certificates (--tls-cacrl): %w", err)
	}
	check := peerCheck{roots: roots, revoked: revoked, name: f.Name}
	return &tls.Config{
		Certificates: []tls.Certificate{own},
		MinVersion:   tls.VersionTLS12,
		// The check is our own, because crypto/tls would insist on a certificate for clients, which GnuTLS does not: with
		// CRIU one certificate often does for both sides.
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       check.verify,
		SessionTicketsDisabled: true, // so that nobody is let in without the check
	}, nil
}

func orDefault(path, standard string) string {
	if path == "" {
		return standard
	}
	return path
}

// revocations reads the list of revoked certificates and sees that an authority signed it.
func (f TLSFiles) revocations(authorities []byte) ([]*x509.RevocationList, error) {
	text, err := os.ReadFile(orDefault(f.CACRL, DefaultCACRL))
	if errors.Is(err, fs.ErrNotExist) && f.CACRL == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var signers []*x509.Certificate
	for block, rest := pem.Decode(authorities); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			signers = append(signers, c)
		}
	}
	var lists []*x509.RevocationList
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(signers, func(c *x509.Certificate) bool { return list.CheckSignatureFrom(c) == nil }) {
			return nil, errors.New("no authority of --tls-cacert has signed it")
		}
		if !list.NextUpdate.IsZero() && time.Now().After(list.NextUpdate) {
			return nil, fmt.Errorf("it is out of date since %v: get a newer one", list.NextUpdate)
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return nil, errors.New("there is none in the file: it must be PEM")
	}
	return lists, nil
}

// peerCheck decides who may connect.
type peerCheck struct {
	roots   *x509.CertPool
	revoked []*x509.RevocationList
	name    string
}

func (p *peerCheck) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the peer shows no certificate")
	}
	peer := s.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := peer.Verify(x509.VerifyOptions{Roots: p.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("the peer's certificate (%s): %w", peer.Subject, err)
	}
	for _, chain := range chains {
		for _, c := range chain {
			if p.isRevoked(c) {
				return fmt.Errorf("the certificate of %s was revoked", c.Subject)
			}
		}
	}
	if p.name != "" && !isFor(peer, p.name) {
		return fmt.Errorf("the peer's certificate (%s) is not for %s: use --tls-no-cn-verify if any name will do", peer.Subject, p.name)
	}
	return nil
}

func (p *peerCheck) isRevoked(c *x509.Certificate) bool {
	for _, list := range p.revoked {
		if !bytes.Equal(list.RawIssuer, c.RawIssuer) {
			continue
		}
		for _, e := range list.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return true
			}
		}
	}
	return false
}

// isFor says whether a certificate is for a name. Where it has no alternative names, its common name counts, as with GnuTLS.
func isFor(c *x509.Certificate, name string) bool {
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0 {
		return c.VerifyHostname(name) == nil
	}
	return c.Subject.CommonName == name
}
