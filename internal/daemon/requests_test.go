package daemon

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog/catalogtest"
)

// procedures are all methods with an empty request of each.
var procedures = map[string]proto.Message{
	"stasis.v1.CheckpointService/Dump":    &v1.DumpRequest{},
	"stasis.v1.CheckpointService/PreDump": &v1.PreDumpRequest{},
	"stasis.v1.CheckpointService/Restore": &v1.RestoreRequest{},
	"stasis.v1.CheckpointService/List":    &v1.ListCheckpointsRequest{},
	"stasis.v1.CheckpointService/Get":     &v1.GetCheckpointRequest{},
	"stasis.v1.CheckpointService/Verify":  &v1.VerifyRequest{},
	"stasis.v1.CheckpointService/Remove":  &v1.RemoveCheckpointsRequest{},
	"stasis.v1.CheckpointService/Prune":   &v1.PruneRequest{},
	"stasis.v1.SystemService/Version":     &v1.VersionRequest{},
	"stasis.v1.SystemService/Status":      &v1.StatusRequest{},
	"stasis.v1.SystemService/Check":       &v1.CheckRequest{},
	"stasis.v1.SystemService/Config":      &v1.ConfigRequest{},
}

// FuzzRequests sends anything to any method, as JSON, as protobuf and as a stream. Whatever it is, there is an answer, and no panic.
func FuzzRequests(f *testing.F) {
	for name := range procedures {
		for i, body := range []string{"{}", `{"pid": 2, "name": "x"}`, `{"checkpoint": "one"}`, `{"pageToken": "AAAA", "pageSize": -1}`, `{"retention": {"keepLast": -5}}`,
			`{"settings": {"streams": -1, "maxPause": "-1s", "criu": {"raw": ["\n"]}}}`, "\x08\x80\x80\x80\x80\x10", "[", "null", ""} {
			f.Add(name, byte(i), []byte(body))
		}
		r := rand.New(rand.NewPCG(uint64(len(name)), 1))
		for range 3 { // of the right form
			m := proto.Clone(procedures[name])
			fill(r, m.ProtoReflect(), 0)
			if text, err := protojson.Marshal(m); err == nil {
				f.Add(name, byte(0), text)
				f.Add(name, byte(2), text)
			}
			if raw, err := proto.Marshal(m); err == nil {
				f.Add(name, byte(1), raw)
				f.Add(name, byte(3), raw)
			}
		}
	}
	b := fuzzed(f)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.config.Daemon.Socket)
	}}}
	f.Fuzz(func(t *testing.T, procedure string, kind byte, body []byte) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, baseURL+"/"+procedure, nil)
		if err != nil {
			return // no URL: nothing can be sent
		}
		envelope := append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
		switch kind % 4 {
		case 0:
			request.Header.Set("Content-Type", "application/json")
		case 1:
			request.Header.Set("Content-Type", "application/proto")
		case 2:
			request.Header.Set("Content-Type", "application/connect+json")
			body = envelope
		case 3:
			request.Header.Set("Content-Type", "application/connect+proto")
			body = envelope
		}
		request.Body, request.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		response, err := client.Do(request)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if b.log.panicked.Load() {
			t.Fatalf("a panic:\n%s", b.log)
		}
	})
}

// fuzzed is a daemon for requests that nobody has thought of. It never leaves its folder.
func fuzzed(f *testing.F) *bench {
	f.Helper()
	return serve(f, func(o *Options) {
		fake(func(context.Context, stasis.DumpOptions) error { return stasis.ErrProcess })(o)
		catalogtest.Make(f, filepath.Join(o.Config.Checkpoint.Dir, "one"), catalogtest.Options{})
	})
}

// Random messages of the right form get a right answer or a right error, never an internal one.
func TestRandomMessages(t *testing.T) {
	b := serve(t, func(o *Options) {
		fake(func(context.Context, stasis.DumpOptions) error { return stasis.ErrProcess })(o)
		catalogtest.Make(t, filepath.Join(o.Config.Checkpoint.Dir, "one"), catalogtest.Options{})
	})
	r := rand.New(rand.NewPCG(1, 2))
	client := b.httpAs(t, 0)
	for range 300 {
		for name, m := range procedures {
			m = proto.Clone(m)
			fill(r, m.ProtoReflect(), 0)
			body, err := protojson.Marshal(m)
			if err != nil {
				continue // such as a duration out of range, which JSON cannot say
			}
			response, err := client.Post(baseURL+"/"+name, "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusInternalServerError {
				t.Fatalf("%s %s: %s", name, body, text)
			}
		}
	}
}
