package page

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"stasis/internal/peer"
)

const (
	codeLife    = 5 * time.Minute
	sessionLife = 12 * time.Hour // without a request
	mostCodes   = 16             // of one user; the oldest goes
	mostTokens  = 64             // of one user; the one that was used longest ago goes
)

// digest is what is kept of a secret: looking it up takes no longer or shorter for one that is nearly right.
type digest [sha256.Size]byte

// pass is what a secret stands for.
type pass struct {
	who  peer.Peer
	last time.Time // of use; for a code when it was made
}

// sessions knows which secrets stand for whom. All of it is gone with the daemon: a secret that somebody else gets to see because he
// serves on the daemon's address after it has ended is of no use.
type sessions struct {
	now func() time.Time

	mu     sync.Mutex
	codes  map[digest]*pass // guarded by mu
	tokens map[digest]*pass // guarded by mu
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, codes: make(map[digest]*pass), tokens: make(map[digest]*pass)}
}

// secret makes 256 random bits.
func secret() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // it never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// invite makes a code.
func (s *sessions) invite(who peer.Peer) (code string, expires time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	tidy(s.codes, who, now.Add(-codeLife), mostCodes)
	code = secret()
	s.codes[sha256.Sum256([]byte(code))] = &pass{who, now}
	return code, now.Add(codeLife)
}

// begin exchanges a code, which then works no more, for a token.
func (s *sessions) begin(code string) (token string, who peer.Peer, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, key := s.now(), sha256.Sum256([]byte(code))
	p := s.codes[key]
	delete(s.codes, key)
	if p == nil || now.Sub(p.last) >= codeLife {
		return "", peer.Peer{}, false
	}
	tidy(s.tokens, p.who, now.Add(-sessionLife), mostTokens)
	token = secret()
	s.tokens[sha256.Sum256([]byte(token))] = &pass{p.who, now}
	return token, p.who, true
}

// find says for whom a token stands.
func (s *sessions) find(token string) (peer.Peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, key := s.now(), sha256.Sum256([]byte(token))
	p := s.tokens[key]
	if p == nil || now.Sub(p.last) >= sessionLife {
		delete(s.tokens, key)
		return peer.Peer{}, false
	}
	p.last = now
	return p.who, true
}

// tidy drops what is too old, and makes room for one more of a user.
func tidy(passes map[digest]*pass, who peer.Peer, since time.Time, most int) {
	var oldest digest
	count := 0
	for key, p := range passes {
		if !p.last.After(since) {
			delete(passes, key)
			continue
		}
		if p.who.UID != who.UID {
			continue
		}
		if count++; count == 1 || p.last.Before(passes[oldest].last) {
			oldest = key
		}
	}
	if count >= most {
		delete(passes, oldest)
	}
}
