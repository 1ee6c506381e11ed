package ready

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "stasis/api/stasis/v1"
)

func list(names ...string) *v1.ListJobsResponse {
	m := &v1.ListJobsResponse{Total: int32(len(names))}
	for _, name := range names {
		m.Jobs = append(m.Jobs, &v1.Job{Spec: &v1.JobSpec{Name: name}, CheckpointBytes: 1 << 40})
	}
	return m
}

// An answer is given in its generation, to its question, and never after that.
func TestAnswersEndWithTheirGeneration(t *testing.T) {
	var a Answers[string]
	if a.Get("q", 0) != nil {
		t.Fatal("an answer that nobody has put")
	}
	first := list("a")
	a.Put("q", 3, first)
	if a.Get("q", 3) != proto.Message(first) || a.Get("other", 3) != nil || a.Get("q", 4) != nil {
		t.Fatal("not this answer, or to something else")
	}
	second := list("b")
	a.Put("q", 4, second)
	if a.Get("q", 3) != nil || a.Get("q", 4) != proto.Message(second) {
		t.Fatal("of another generation")
	}
	a.Put("q", 3, first) // by a call that was slow
	if a.Get("q", 4) != proto.Message(second) || a.Get("q", 3) != nil {
		t.Fatal("an older answer has replaced a newer one")
	}
}

// What is sent is what would be sent without all this, the first time, the second, and after the answer is dropped; and what the caller does
// with its bytes changes nothing.
func TestBytesAreTheMessages(t *testing.T) {
	var a Answers[int]
	m := list("one", "two")
	a.Put(1, 1, m)
	binaryCodec, jsonCodec := &codec[int]{answers: &a, form: binary}, &codec[int]{answers: &a, form: text}
	want, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	wantText, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		if round == 3 {
			a.Put(1, 2, list())
		}
		got, err := binaryCodec.MarshalAppend([]byte("before"), m)
		if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Fatalf("%q, %v", got, err)
		}
		clear(got)
		if got, err = binaryCodec.Marshal(m); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, %v", got, err)
		}
		clear(got)
		if got, err = jsonCodec.MarshalAppend(nil, m); err != nil || !sameJSON(t, got, wantText) {
			t.Fatalf("%s, %v", got, err)
		}
		clear(got)
	}
	if a.of[m] != nil {
		t.Fatal("it was not dropped: the last round says nothing")
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var one, other bytes.Buffer
	if err := json.Compact(&one, a); err != nil {
		t.Fatal(err)
	}
	if err := json.Compact(&other, b); err != nil {
		t.Fatal(err)
	}
	return one.String() == other.String()
}

// However much is asked, what is kept has a limit.
func TestBounds(t *testing.T) {
	var a Answers[string]
	c := &codec[string]{answers: &a, form: binary}
	large := list(string(bytes.Repeat([]byte{'x'}, mostBytes/10)))
	for i := range 3 * mostAnswers {
		m, _ := proto.Clone(large).(*v1.ListJobsResponse)
		question := fmt.Sprint(i % (2 * mostAnswers))
		a.Put(question, 1, m)
		if _, err := c.Marshal(m); err != nil {
			t.Fatal(err)
		}
		kept := 0
		for _, one := range a.to {
			kept += len(one.forms[binary]) + len(one.forms[text])
		}
		if len(a.to) > mostAnswers || len(a.of) != len(a.to) || kept > mostBytes || kept != a.bytes {
			t.Fatalf("%d answers, %d by message, %d bytes, %d by its own count", len(a.to), len(a.of), kept, a.bytes)
		}
		if a.Get(question, 1) != proto.Message(m) && len(a.to) > 0 {
			t.Fatal("the newest answer is not there")
		}
	}
}

// Requests are read as connect's own codecs read them.
func TestRequests(t *testing.T) {
	want := &v1.ListJobsRequest{PageSize: 7, Brief: true}
	data, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := new(v1.ListJobsRequest)
	if err := (&codec[int]{form: binary}).Unmarshal(data, got); err != nil || !proto.Equal(got, want) {
		t.Fatal(got, err)
	}
	c := &codec[int]{form: text}
	got = new(v1.ListJobsRequest)
	if err := c.Unmarshal([]byte(`{"pageSize": 7, "brief": true, "of_tomorrow": 1}`), got); err != nil || !proto.Equal(got, want) {
		t.Fatal(got, err)
	}
	for _, bad := range []string{"", "{", "[]", `{"pageSize": "x"}`} {
		if c.Unmarshal([]byte(bad), got) == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if c.Unmarshal(nil, "no message") == nil {
		t.Error("a string was read into")
	}
	if _, err := c.Marshal("no message"); err == nil {
		t.Error("a string was written")
	}
}
