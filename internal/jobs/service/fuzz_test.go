package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/config"
	"stasis/internal/jobs"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/peer"
	"stasis/internal/wire"
)

// nothing is a runner whose jobs are none: whatever is asked for, no program is started, and no process gets a signal.
type nothing struct{}

func (nothing) Launch(context.Context, string) (jobs.Shim, error) { return newIdle(), nil }

func (nothing) Connect(context.Context, string) (jobs.Shim, error) { return nil, shim.ErrGone }

func (nothing) Alive(int, uint64) bool { return true }

func (nothing) LastStatus(string) (shim.Status, error) { return shim.Status{}, os.ErrNotExist }

// idle is a job that does nothing until any signal ends it.
type idle struct {
	mu    sync.Mutex
	now   shim.Status   // guarded by mu
	ended chan struct{} // guarded by mu; of the run
}

func newIdle() *idle { return &idle{ended: make(chan struct{})} }

func (i *idle) Status(context.Context) (shim.Status, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now, nil
}

func (i *idle) begin() shim.Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	// No machine has that process.
	i.now, i.ended = shim.Status{Run: i.now.Run + 1, Running: true, PID: 1<<22 + 1, Start: 1}, make(chan struct{})
	return i.now
}

func (i *idle) Start(context.Context, shim.Command) (shim.Status, error) { return i.begin(), nil }

func (i *idle) Restore(context.Context, shim.Restore) (shim.Status, shim.Restored, error) {
	return i.begin(), shim.Restored{}, nil
}

func (i *idle) Signal(context.Context, syscall.Signal, bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.now.Running {
		i.now.Running, i.now.Exit = false, &db.Exit{Code: -1, Signal: "SIGKILL", At: time.Now()}
		close(i.ended)
	}
	return nil
}

func (i *idle) Wait(ctx context.Context, _ int) (shim.Status, error) {
	i.mu.Lock()
	ended := i.ended
	i.mu.Unlock()
	select {
	case <-ended:
	case <-ctx.Done():
		return shim.Status{}, ctx.Err()
	}
	return i.Status(ctx)
}

func (i *idle) Quit(context.Context) error { return nil }

// methods are those of the JobService.
func methods(tb testing.TB) []protoreflect.MethodDescriptor {
	tb.Helper()
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(stasisv1connect.JobServiceName)
	if err != nil {
		tb.Fatal(err)
	}
	service, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		tb.Fatalf("%v is no service", found)
	}
	var list []protoreflect.MethodDescriptor
	for i := range service.Methods().Len() {
		list = append(list, service.Methods().Get(i))
	}
	return list
}

// empty makes a request of a method.
func empty(tb testing.TB, m protoreflect.MethodDescriptor) proto.Message {
	tb.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		tb.Fatal(err)
	}
	return kind.New().Interface()
}

// target is a JobService with one job that anybody may ask anything.
type target struct {
	manager *jobs.Manager
	handler http.Handler
	methods []protoreflect.MethodDescriptor
	calls   int
}

func newTarget(tb testing.TB) *target {
	tb.Helper()
	dir := tb.TempDir()
	m, err := jobs.Open(context.Background(), jobs.Options{
		Database: filepath.Join(dir, "state.db"), Dir: filepath.Join(dir, "jobs"), Checkpoints: filepath.Join(dir, "checkpoints"),
		Engine: paper{}, Runner: nothing{}, RestartDelay: time.Hour,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	path, handler := stasisv1connect.NewJobServiceHandler(With(m, config.Default()), connect.WithInterceptors(coded{}), connect.WithReadMaxBytes(1<<20))
	mux := http.NewServeMux()
	mux.Handle(path, handler)
	t := &target{manager: m, handler: mux, methods: methods(tb)}
	t.tidy(tb)
	return t
}

// sesame is an argument of that job, which nobody can guess.
const sesame = "open-9d1f6c"

// known is the user whose job "one" is there.
const known = 12345

// tidy leaves the one job.
func (t *target) tidy(tb testing.TB) {
	tb.Helper()
	for _, info := range t.manager.List(0) {
		if _, err := t.manager.Remove(context.Background(), info.Spec.Name, true, true); err != nil {
			tb.Fatal(err)
		}
	}
	if _, err := t.manager.Run(context.Background(), db.Spec{Name: "one", Argv: []string{"x", sesame}, UID: known, GID: known}, known); err != nil {
		tb.Fatal(err)
	}
	if _, err := t.manager.Dump(context.Background(), "one", jobs.DumpRequest{}); err != nil {
		tb.Fatal(err)
	}
}

// coded gives errors their codes, as the edge of the daemon does.
type coded struct{}

func (coded) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, r)
		return response, wire.Error(err)
	}
}

func (coded) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (coded) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error { return wire.Error(next(ctx, conn)) }
}

// endless are the methods that follow something until the caller has enough.
var endless = map[protoreflect.Name]bool{"Logs": true, "Attach": true, "Events": true}

// ask sends a body to a method, and gives what came back.
func (t *target) ask(tb testing.TB, method uint8, asJSON bool, uid uint32, body []byte) (answer string) {
	tb.Helper()
	m := t.methods[int(method)%len(t.methods)]
	if uid == 0 && m.Name() == "Manage" {
		return "" // whom root takes up may be anybody here, and would be killed by the next call
	}
	if t.calls++; t.calls%100 == 0 || len(t.manager.List(0)) > 20 {
		t.tidy(tb)
	}
	encoding := "proto"
	if asJSON {
		encoding = "json"
	}
	contentType := "application/" + encoding
	if m.IsStreamingClient() || m.IsStreamingServer() {
		contentType = "application/connect+" + encoding
		body = append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	}
	ctx := peer.With(context.Background(), peer.Peer{UID: uid, GID: uid})
	if endless[m.Name()] {
		limited, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		defer cancel()
		ctx = limited
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/"+string(m.Parent().FullName())+"/"+string(m.Name()), bytes.NewReader(body))
	r.ProtoMajor, r.ProtoMinor, r.Proto = 2, 0, "HTTP/2.0"
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Connect-Protocol-Version", "1")
	w := httptest.NewRecorder()
	t.handler.ServeHTTP(w, r)
	text, err := io.ReadAll(w.Body)
	if err != nil {
		tb.Fatal(err)
	}
	for _, code := range []string{`"code":"internal"`, `"code":"unknown"`, `"code":"unimplemented"`} {
		if strings.Contains(string(text), code) {
			tb.Fatalf("%s of user %d: %q was answered by %s", m.Name(), uid, body, text)
		}
	}
	return string(text)
}

// FuzzJobRequests sends anything to any method of the JobService, on behalf of root, of a job's owner, or of somebody else. There is always an
// answer, and for what makes no sense one that says so.
func FuzzJobRequests(f *testing.F) {
	t := newTarget(f)
	for n, m := range t.methods {
		r := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // small
		for k := range 6 {
			q := empty(f, m)
			fillRequest(r, q.ProtoReflect(), 0)
			text, err := protojson.Marshal(q)
			raw, rawErr := proto.Marshal(q)
			if err := errors.Join(err, rawErr); err != nil {
				continue // a duration that JSON cannot say
			}
			uid := []uint32{0, known, 54321}[k%3]
			f.Add(uint8(n), true, uid, text) //nolint:gosec // small
			f.Add(uint8(n), false, uid, raw) //nolint:gosec // small
		}
	}
	f.Add(uint8(0), true, uint32(0), []byte(`{"spec": {"name": "../../etc", "command": ["x"]}}`))
	f.Add(uint8(0), true, uint32(known), []byte(`{"spec": {"command": ["x"], "withFiles": ["/etc/shadow"], "uid": 0}}`))
	f.Add(uint8(3), true, uint32(0), []byte(`{"job": "one", "schedule": {"every": "315576000000s"}, "restart": {"policy": 77}}`))
	f.Fuzz(func(tt *testing.T, method uint8, asJSON bool, uid uint32, body []byte) {
		if uid != 0 && uid != known {
			uid = 54321 // no process is that user's
		}
		answer := t.ask(tt, method, asJSON, uid, body)
		if uid == 54321 && strings.Contains(answer, sesame) && !bytes.Contains(body, []byte(sesame)) {
			tt.Fatalf("a stranger gets %q for %q", answer, body)
		}
		for _, info := range t.manager.List(0) {
			if info.Owner != 0 && (info.Spec.UID != info.Owner || len(info.Spec.WithFiles) > 0 || len(info.Spec.Settings.CRIU.Raw) > 0) {
				tt.Fatalf("user %d has a job that runs as %d: %+v", info.Owner, info.Spec.UID, info.Spec)
			}
		}
	})
}

// fillRequest puts values into a message, most of which somebody might have thought of, and some of which nobody would.
func fillRequest(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if r.IntN(3) == 0 || depth > 4 || f.IsMap() {
			continue
		}
		switch {
		case f.IsList() && f.Message() != nil:
			fillRequest(r, m.Mutable(f).List().AppendMutable().Message(), depth+1)
		case f.IsList():
			m.Mutable(f).List().Append(someValue(r, f))
		case f.Message() != nil && f.Message().FullName() == "google.protobuf.Duration":
			m.Set(f, protoreflect.ValueOfMessage(durationpb.New(time.Duration(r.Int64N(3)-1)*time.Hour).ProtoReflect()))
		case f.Message() != nil:
			fillRequest(r, m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, someValue(r, f))
		}
	}
}

func someValue(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	n := []int64{0, 1, -1, 5, 1 << 30, -1 << 31, 1<<31 - 1}[r.IntN(7)]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n&1 == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.IntN(6)))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n)) //nolint:gosec // all of them fit
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n << 32)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n)) //nolint:gosec // it wraps on purpose
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n)) //nolint:gosec // it wraps on purpose
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{byte(n)})
	}
	return protoreflect.ValueOfString([]string{"one", "", "two", "../one", "/etc/passwd", "lz4", "* * * * *", "one-1", "\n", strings.Repeat("y", 5000)}[r.IntN(10)])
}
