package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// asJSON is a message of the API as all JSON of the commands is (docs/json.md), and not as protobuf has it for the API: numbers are numbers,
// times are of RFC 3339, durations are whole microseconds with _us behind their name, and words are those of the flags.
func asJSON(m proto.Message) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := writeFields(&b, m.ProtoReflect()); err != nil {
		return nil, fmt.Errorf("write the result: %w", err)
	}
	return b.Bytes(), nil
}

// writeFields writes all fields but messages, and members of a choice, that are not set.
func writeFields(b *bytes.Buffer, m protoreflect.Message) error {
	fields := m.Descriptor().Fields()
	b.WriteByte('{')
	first := true
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && !m.Has(f) {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		name := string(f.Name())
		if f.Message() != nil && f.Message().FullName() == durationName {
			name += "_us"
		}
		b.WriteString(strconv.Quote(name) + ":")
		if err := writeField(b, f, m.Get(f)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	b.WriteByte('}')
	return nil
}

func writeField(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.IsList():
		b.WriteByte('[')
		for i := range v.List().Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeValue(b, f, v.List().Get(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case f.IsMap():
		entries := make(map[string]protoreflect.Value)
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			entries[k.String()] = v
			return true
		})
		b.WriteByte('{')
		for i, key := range slices.Sorted(maps.Keys(entries)) {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeAny(b, key); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := writeValue(b, f.MapValue(), entries[key]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	}
	return writeValue(b, f, v)
}

var durationName = (&durationpb.Duration{}).ProtoReflect().Descriptor().FullName()

func writeValue(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.Enum() != nil:
		return writeAny(b, wordOf(f.Enum(), v.Enum()))
	case f.Message() == nil:
		return writeAny(b, v.Interface())
	}
	switch known := v.Message().Interface().(type) {
	case *durationpb.Duration:
		return writeAny(b, known.AsDuration().Microseconds())
	case *timestamppb.Timestamp:
		return writeAny(b, known.AsTime().Format(time.RFC3339Nano))
	}
	return writeFields(b, v.Message())
}

func writeAny(b *bytes.Buffer, v any) error {
	encoder := json.NewEncoder(b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the line's end
	return nil
}

// wordOf is a value such as RESTART_POLICY_ON_FAILURE of the enum RestartPolicy as on-failure, and a number that is not known here as that number.
func wordOf(e protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	value := e.Values().ByNumber(n)
	if value == nil {
		return strconv.Itoa(int(n))
	}
	// The first one is always PREFIX_UNSPECIFIED.
	prefix := strings.TrimSuffix(string(e.Values().ByNumber(0).Name()), "UNSPECIFIED")
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(value.Name()), prefix)), "_", "-")
}
