// Package ready keeps answers of the API ready to be sent, for calls that are made often and whose answer seldom changes: lists.
//
// Words: a *generation* is a number that whoever knows the facts gives, and that grows before anybody is told of a change of them. An answer
// is good as long as the generation is the one that it was made in. A *question* is all on which an answer depends besides, above all
// who asks.
//
// An answer is a message that nobody changes any more. [Codec] sends the bytes that its first sending has made of it.
//
// All methods may be called from several goroutines at once.
package ready

import (
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// What is kept of one kind of answers at most. Who asks for more makes room for it, and pays for an answer what it costs.
const (
	mostAnswers = 64
	mostBytes   = 4 << 20
)

// Answers keeps the answers to questions of type Q. The zero value is ready to use.
type Answers[Q comparable] struct {
	mu         sync.Mutex
	generation uint64                    // guarded by mu: of all that is kept
	to         map[Q]*answer             // guarded by mu
	of         map[proto.Message]*answer // guarded by mu: the same ones
	bytes      int                       // guarded by mu: of all forms
}

// answer is a message and what it looks like when it is sent.
type answer struct {
	message proto.Message
	forms   [2][]byte // guarded by mu of Answers; nil: not asked for yet
}

// form is one of the ways to write a message.
type form int

const (
	binary form = iota
	text
)

// Get gives the answer to a question, or nil if none was put since that generation began.
func (a *Answers[Q]) Get(question Q, generation uint64) proto.Message {
	a.mu.Lock()
	defer a.mu.Unlock()
	if found := a.to[question]; found != nil && a.generation == generation {
		return found.message
	}
	return nil
}

// Put keeps an answer, which was made after the generation was looked up, and which nobody changes from now on.
func (a *Answers[Q]) Put(question Q, generation uint64, message proto.Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.generation > generation {
		return // it took so long that others know more
	}
	if a.to == nil || a.generation != generation || len(a.to) >= mostAnswers {
		a.dropLocked()
	}
	a.generation = generation
	if before := a.to[question]; before != nil {
		a.forgetLocked(before)
	}
	kept := &answer{message: message}
	a.to[question], a.of[message] = kept, kept
}

func (a *Answers[Q]) dropLocked() {
	a.to, a.of, a.bytes = make(map[Q]*answer), make(map[proto.Message]*answer), 0
}

func (a *Answers[Q]) forgetLocked(one *answer) {
	delete(a.of, one.message)
	for _, form := range one.forms {
		a.bytes -= len(form)
	}
}

// write appends a message in one of its forms. One that is kept is written once.
func (a *Answers[Q]) write(to []byte, message proto.Message, f form) ([]byte, error) {
	a.mu.Lock()
	kept := a.of[message]
	if kept != nil && kept.forms[f] != nil {
		bytes := kept.forms[f]
		a.mu.Unlock()
		return append(to, bytes...), nil
	}
	a.mu.Unlock()
	begin := len(to)
	var err error
	if f == binary {
		to, err = proto.MarshalOptions{}.MarshalAppend(to, message)
	} else {
		to, err = protojson.MarshalOptions{}.MarshalAppend(to, message)
	}
	if err != nil || kept == nil {
		return to, err //nolint:wrapcheck // it says what it is about
	}
	// The caller's bytes are the caller's: they go to the connection, and are used again for others.
	own := append(make([]byte, 0, len(to)-begin), to[begin:]...)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.of[message] != kept || kept.forms[f] != nil: // dropped, or written by another call meanwhile
	case a.bytes+len(own) > mostBytes:
		a.dropLocked()
	default:
		kept.forms[f] = own
		a.bytes += len(own)
	}
	return to, nil
}

// Options make a service send its ready answers, in gRPC's form and in JSON.
func (a *Answers[Q]) Options() connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(&codec[Q]{name: "proto", answers: a, form: binary}),
		connect.WithCodec(&codec[Q]{name: "json", answers: a, form: text}),
		connect.WithCodec(&codec[Q]{name: "json; charset=utf-8", answers: a, form: text}),
	)
}
