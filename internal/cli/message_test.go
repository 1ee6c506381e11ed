package cli

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "stasis/api/stasis/v1"
)

func TestMessagesAsJSON(t *testing.T) {
	at := time.Date(2026, 11, 21, 13, 0, 0, 5e6, time.UTC)
	for _, c := range []struct {
		message proto.Message
		want    string
	}{
		{&v1.Event{Sequence: 1 << 60, Time: timestamppb.New(at), Kind: v1.EventKind_EVENT_KIND_CHECKPOINT_FAILED, Job: "a<b\n", Exit: &v1.ExitStatus{Signal: 9}},
			`{"sequence":1152921504606846976,"time":"2026-11-21T13:00:00.005Z","kind":"checkpoint-failed","job_id":"","job":"a<b\n","message":"","exit":{"code":0,"signal":9}}`},
		{&v1.Schedule{}, `{}`},
		{&v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(90 * time.Second)}}, `{"every_us":90000000}`},
		{&v1.Schedule{When: &v1.Schedule_Cron{Cron: ""}}, `{"cron":""}`},
		{&v1.Restart{Policy: v1.RestartPolicy_RESTART_POLICY_ON_FAILURE}, `{"policy":"on-failure","max_retries":0,"from_scratch":false}`},
		{&v1.Restart{Policy: 77, Delay: durationpb.New(time.Microsecond + 5)}, `{"policy":"77","max_retries":0,"delay_us":1,"from_scratch":false}`},
		{&v1.LogsResponse{Data: []byte{0, 255}}, `{"data":"AP8="}`},
		{&v1.EvacuateSummary{Took: durationpb.New(1500 * time.Millisecond)}, `{"safe":0,"unsafe":0,"took_us":1500000}`},
	} {
		text, err := asJSON(c.message)
		if err != nil || string(text) != c.want {
			t.Errorf("%T is\n%s, want\n%s (%v)", c.message, text, c.want, err)
		}
	}
	spec := &v1.JobSpec{Name: "x", Command: []string{"a", "b"}, Labels: map[string]string{"z": "1", "b": "2"}}
	text, err := asJSON(spec)
	if err != nil || !strings.Contains(string(text), `"command":["a","b"]`) || !strings.Contains(string(text), `"labels":{"b":"2","z":"1"}`) ||
		!strings.Contains(string(text), `"with_files":[]`) || strings.Contains(string(text), "uid") {
		t.Errorf("%s, %v", text, err)
	}
}

// Every message of the API, filled and empty, is JSON whose names are all of one kind, with no number in quotes.
func TestAllMessagesAsJSON(t *testing.T) {
	names := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	count := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		if mt.Descriptor().ParentFile().Package() != "stasis.v1" || mt.Descriptor().IsMapEntry() {
			return true
		}
		count++
		full := mt.New()
		fillAll(full, 0)
		for _, m := range []protoreflect.Message{mt.New(), full} {
			text, err := asJSON(m.Interface())
			var back map[string]any
			if err == nil {
				decoder := json.NewDecoder(bytes.NewReader(text))
				decoder.UseNumber()
				err = decoder.Decode(&back)
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", mt.Descriptor().Name(), err, text)
				continue
			}
			lookAt(t, string(mt.Descriptor().Name()), back, names)
		}
		return true
	})
	if count < 50 {
		t.Errorf("only %d messages", count)
	}
}

// fillAll sets all fields; numbers are 17.
func fillAll(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("Some Key").MapKey(), protoreflect.ValueOfString("x"))
		case f.IsList() && f.Message() != nil && depth < 5:
			fillAll(m.Mutable(f).List().AppendMutable().Message(), depth+1)
		case f.IsList() && f.Kind() == protoreflect.Int64Kind:
			m.Mutable(f).List().Append(protoreflect.ValueOfInt64(17))
		case f.IsList():
		case f.Message() != nil && depth < 5:
			fillAll(m.Mutable(f).Message(), depth+1)
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(17))
		case f.Kind() == protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(17))
		case f.Kind() == protoreflect.Int32Kind:
			m.Set(f, protoreflect.ValueOfInt32(17))
		}
	}
}

func lookAt(t *testing.T, where string, v any, names *regexp.Regexp) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if name != "Some Key" && !names.MatchString(name) {
				t.Errorf("%s.%s", where, name)
			}
			lookAt(t, where+"."+name, value, names)
		}
	case []any:
		for _, value := range v {
			lookAt(t, where, value, names)
		}
	case string: // of the enums a number is not known
		if v == "17" && !strings.HasSuffix(where, "kind") && !strings.HasSuffix(where, "state") {
			t.Errorf("%s is %q", where, v)
		}
	}
}
