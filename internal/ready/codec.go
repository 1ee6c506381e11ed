package ready

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// codec writes and reads messages as connect's own codecs do, but for answers that are kept, of which the bytes are there.
type codec[Q comparable] struct {
	name    string
	answers *Answers[Q]
	form    form
}

var _ connect.Codec = (*codec[string])(nil)

// Name implements connect.Codec.
func (c *codec[Q]) Name() string { return c.name }

// Marshal implements connect.Codec. The bytes are the caller's.
func (c *codec[Q]) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend is what connect looks for in a codec, so that it can use its buffers again.
func (c *codec[Q]) MarshalAppend(to []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return c.answers.write(to, m, c.form)
}

// Unmarshal implements connect.Codec.
func (c *codec[Q]) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	var err error
	switch {
	case c.form == binary:
		err = proto.Unmarshal(data, m)
	case len(data) == 0:
		err = errors.New("nothing is no JSON object: {} is an empty one")
	default: // clients may be newer
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
	}
	if err != nil {
		return fmt.Errorf("unmarshal into %T: %w", message, err)
	}
	return nil
}
