package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/config"
	"stasis/internal/engine"
	"stasis/internal/image"
	"stasis/internal/jobs"
	"stasis/internal/peer"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/wire"
)

// paper makes checkpoints that are none: the service does not look into them.
type paper struct{ jobs.Library }

func (paper) Dump(_ context.Context, by jobs.User, o stasis.DumpOptions, _ []string) (*stasis.DumpResult, error) {
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(o.Dir, store.ManifestName), nil, 0o600); err != nil {
		return nil, err
	}
	if o.Progress != nil {
		o.Progress(stasis.Progress{Step: stasis.StepCopy, Done: 1, Total: 2})
	}
	m := &image.Manifest{ID: fmt.Sprintf("%032x", by.UID), Created: time.Now(), RootPID: o.PID}
	return &stasis.DumpResult{Dir: o.Dir, After: o.After, Manifest: m}, nil
}

func (paper) Remove(_ context.Context, dirs []string) error {
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// serve serves jobs to whomever the test says is calling.
func serve(t *testing.T) (as func(uid uint32) stasisv1connect.JobServiceClient) {
	t.Helper()
	require.Root(t)
	dir := t.TempDir()
	m, err := jobs.Open(t.Context(), jobs.Options{
		Database: filepath.Join(dir, "state.db"), Dir: filepath.Join(dir, "jobs"), Checkpoints: filepath.Join(dir, "checkpoints"), Engine: paper{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, info := range m.List(0) {
			if _, err := m.Remove(context.Background(), info.Spec.Name, true, true); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	explain := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			response, err := next(ctx, r)
			return response, wire.Error(err)
		}
	}))
	served := With(m, config.Default())
	_, handler := stasisv1connect.NewJobServiceHandler(served, explain, served.Options())
	return func(uid uint32) stasisv1connect.JobServiceClient {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler.ServeHTTP(w, r.WithContext(peer.With(r.Context(), peer.Peer{UID: uid, GID: uid})))
		}))
		server.EnableHTTP2 = true
		server.StartTLS()
		t.Cleanup(server.Close)
		return stasisv1connect.NewJobServiceClient(server.Client(), server.URL)
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, c stasisv1connect.JobServiceClient, spec *v1.JobSpec) *v1.Job {
	t.Helper()
	spec.Environment = []string{"PATH=/usr/bin:/bin"}
	response, err := c.Run(within(t), connect.NewRequest(&v1.RunRequest{Spec: spec}))
	if err != nil {
		t.Fatal(err)
	}
	return response.Msg.GetJob()
}

// ended is the error of a stream that is read to its end.
func ended[T any](stream *connect.ServerStreamForClient[T], err error) error {
	if err != nil {
		return err
	}
	for stream.Receive() {
	}
	return errors.Join(stream.Err(), stream.Close())
}

// Another user's job does not exist for anybody but root and its owner.
func TestOthersSeeNothing(t *testing.T) {
	as := serve(t)
	root, owner, hostile := as(0), as(1000), as(1001)
	job := start(t, owner, &v1.JobSpec{Name: "mine", Command: []string{"sh", "-c", "id -u; exec sleep 1000"}})
	ctx := within(t)
	name := job.GetSpec().GetName()
	for _, c := range []struct {
		name string
		call func(stasisv1connect.JobServiceClient, string) error
	}{
		{"Get", func(c stasisv1connect.JobServiceClient, job string) error {
			_, err := c.Get(ctx, connect.NewRequest(&v1.GetJobRequest{Job: job}))
			return err
		}},
		{"Update", func(c stasisv1connect.JobServiceClient, job string) error {
			_, err := c.Update(ctx, connect.NewRequest(&v1.UpdateJobRequest{Job: job, Restart: &v1.Restart{}}))
			return err
		}},
		{"Dump", func(c stasisv1connect.JobServiceClient, job string) error {
			return ended(c.Dump(ctx, connect.NewRequest(&v1.DumpJobRequest{Job: job})))
		}},
		{"Logs", func(c stasisv1connect.JobServiceClient, job string) error {
			return ended(c.Logs(ctx, connect.NewRequest(&v1.LogsRequest{Job: job})))
		}},
		{"Attach", func(c stasisv1connect.JobServiceClient, job string) error {
			stream := c.Attach(ctx)
			_ = stream.Send(&v1.AttachRequest{Event: &v1.AttachRequest_Start{Start: &v1.AttachStart{Job: job}}})
			_, err := stream.Receive()
			return errors.Join(err, stream.CloseRequest(), stream.CloseResponse())
		}},
		{"Evacuate", func(c stasisv1connect.JobServiceClient, job string) error {
			return ended(c.Evacuate(ctx, connect.NewRequest(&v1.EvacuateRequest{Jobs: []string{job}, Deadline: durationpb.New(time.Second), After: v1.After_AFTER_RUN})))
		}},
		{"Restore", func(c stasisv1connect.JobServiceClient, job string) error {
			err := ended(c.Restore(ctx, connect.NewRequest(&v1.RestoreJobRequest{Job: job, At: "99"})))
			if err != nil && strings.Contains(err.Error(), "no checkpoint 99") {
				return nil // it may be asked for
			}
			return err
		}},
		{"Kill", func(c stasisv1connect.JobServiceClient, job string) error {
			_, err := c.Kill(ctx, connect.NewRequest(&v1.KillRequest{Job: job}))
			return err
		}},
		{"Remove", func(c stasisv1connect.JobServiceClient, job string) error {
			_, err := c.Remove(ctx, connect.NewRequest(&v1.RemoveJobRequest{Job: job, Checkpoints: true}))
			return err
		}},
	} {
		for _, ref := range []string{name, job.GetId()} {
			err := c.call(hostile, ref)
			nobody := c.call(hostile, strings.Repeat("f", len(ref)))
			if err == nil || nobody == nil || strings.ReplaceAll(err.Error(), ref, "") != strings.ReplaceAll(nobody.Error(), strings.Repeat("f", len(ref)), "") {
				t.Errorf("%s of another's job: %v; of none: %v", c.name, err, nobody)
			}
		}
		by := map[bool]stasisv1connect.JobServiceClient{true: root, false: owner}[c.name != "Logs"]
		if err := c.call(by, name); err != nil {
			t.Errorf("%s by root or its owner: %v", c.name, err)
		}
	}
	list, err := hostile.List(ctx, connect.NewRequest(&v1.ListJobsRequest{}))
	if err != nil || list.Msg.GetTotal() != 0 {
		t.Errorf("a list for another: %v, %v", list, err)
	}
	events, err := hostile.Events(ctx, connect.NewRequest(&v1.EventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for events.Receive() {
		t.Errorf("another's event: %v", events.Msg())
	}
}

func TestUsersRunAsThemselves(t *testing.T) {
	as := serve(t)
	ctx := within(t)
	job := start(t, as(1000), &v1.JobSpec{Command: []string{"sh", "-c", "id -u; id -g; id -G"}, NoTerminal: true})
	var log bytes.Buffer
	stream, err := as(1000).Logs(ctx, connect.NewRequest(&v1.LogsRequest{Job: job.GetId(), Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		log.Write(stream.Msg().GetData())
	}
	if err := stream.Err(); err != nil || log.String() != "1000\n1000\n1000\n" {
		t.Fatalf("it ran as %q, %v", log.String(), err)
	}
	// What is theirs has to pass as theirs, console included, or none of their jobs could be dumped.
	for _, piped := range []bool{true, false} {
		job := start(t, as(1000), &v1.JobSpec{Command: []string{"sleep", "1000"}, NoTerminal: piped})
		if err := engine.Theirs(int(job.GetPid()), peer.Peer{UID: 1000, GID: 1000}); err != nil {
			t.Errorf("without a terminal is %v: %v", piped, err)
		}
	}
	zero := uint32(0)
	for name, spec := range map[string]*v1.JobSpec{
		"uid":        {Uid: &zero},
		"gid":        {Gid: &zero},
		"with_files": {WithFiles: []string{"/etc"}},
		"root":       {Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{Root: "/"}}},
		"raw":        {Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{Raw: []string{"action-script /tmp/x"}}}},
		"external":   {Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{External: []string{"mnt[/]:x"}}}},
	} {
		spec.Command = []string{"true"}
		_, err := as(1000).Run(ctx, connect.NewRequest(&v1.RunRequest{Spec: spec}))
		if connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = as(1000).Manage(ctx, connect.NewRequest(&v1.ManageRequest{Pid: int32(os.Getpid()), Spec: &v1.JobSpec{}}))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("root's process was taken up: %v", err)
	}
}

func TestAttachOverTheAPI(t *testing.T) {
	as := serve(t)
	ctx := within(t)
	c := as(0)
	job := start(t, c, &v1.JobSpec{Name: "shell", Command: []string{"sh"}, TerminalSize: &v1.TerminalSize{Rows: 11, Columns: 22}})
	stream := c.Attach(ctx)
	send := func(m *v1.AttachRequest) {
		t.Helper()
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	seen := ""
	until := func(text string) *v1.AttachResponse {
		t.Helper()
		for {
			m, err := stream.Receive()
			if err != nil {
				t.Fatalf("waiting for %q after %q: %v", text, seen, err)
			}
			seen += string(m.GetOutput())
			if strings.Contains(seen, text) || m.GetChanged() != nil {
				return m
			}
		}
	}
	send(&v1.AttachRequest{Event: &v1.AttachRequest_Start{Start: &v1.AttachStart{Job: "shell"}}})
	send(&v1.AttachRequest{Event: &v1.AttachRequest_Input{Input: []byte("stty size\n")}})
	until("11 22")
	send(&v1.AttachRequest{Event: &v1.AttachRequest_Size{Size: &v1.TerminalSize{Rows: 33, Columns: 44}}})
	send(&v1.AttachRequest{Event: &v1.AttachRequest_Input{Input: []byte("stty size; exit 5\n")}})
	until("33 44")
	last := until("nothing that it prints").GetChanged()
	if last.GetId() != job.GetId() || last.GetState() != v1.JobState_JOB_STATE_FAILED || last.GetExit().GetCode() != 5 {
		t.Fatalf("at last %v", last)
	}
}

func TestListPages(t *testing.T) {
	as := serve(t)
	ctx := within(t)
	c := as(0)
	for i := range 5 {
		start(t, c, &v1.JobSpec{Name: fmt.Sprint("j", i), Command: []string{"sleep", "1000"}, NoTerminal: true})
	}
	var names []string
	for token := ""; ; {
		page, err := c.List(ctx, connect.NewRequest(&v1.ListJobsRequest{PageSize: 2, PageToken: token}))
		if err != nil || page.Msg.GetTotal() != 5 {
			t.Fatalf("%v, %v", page, err)
		}
		for _, j := range page.Msg.GetJobs() {
			names = append(names, j.GetSpec().GetName())
		}
		if token = page.Msg.GetNextPageToken(); token == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "j4 j3 j2 j1 j0" {
		t.Fatalf("listed %s", got)
	}
	none, err := c.List(ctx, connect.NewRequest(&v1.ListJobsRequest{States: []v1.JobState{v1.JobState_JOB_STATE_DONE}}))
	if err != nil || none.Msg.GetTotal() != 0 {
		t.Fatalf("%v, %v", none, err)
	}
	if _, err := c.List(ctx, connect.NewRequest(&v1.ListJobsRequest{PageToken: "gone"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Fatal(err)
	}
}

// Whatever is in a request, the service answers, and a job that it makes is one that the manager's rules allow.
func FuzzSpec(f *testing.F) {
	full, _ := proto.Marshal(&v1.JobSpec{
		Name: "a", Command: []string{"x"}, Schedule: &v1.Schedule{When: &v1.Schedule_Cron{Cron: "* * * * *"}},
		Retention: &v1.Retention{KeepLast: 3}, Restart: &v1.Restart{Policy: 2, Delay: durationpb.New(1)}, Settings: &v1.DumpSettings{Level: -1},
	})
	f.Add(full, uint32(0))
	f.Add([]byte{}, uint32(7))
	f.Fuzz(func(t *testing.T, raw []byte, uid uint32) {
		var m v1.JobSpec
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		p := peer.Peer{UID: uid, GID: uid}
		spec, err := specOf(&m, p, config.Default())
		if err != nil {
			return
		}
		if uid != 0 && (spec.UID != uid || spec.GID != uid && m.Gid == nil || len(spec.WithFiles) > 0) {
			t.Fatalf("user %d gets %+v", uid, spec)
		}
		if again := specMessage(&spec); again.GetName() != m.GetName() || len(again.GetCommand()) != len(m.GetCommand()) {
			t.Fatalf("%v became %v", &m, again)
		}
	})
}

// A brief list has what a table shows, a full one everything, and neither has what was so a moment ago.
func TestLists(t *testing.T) {
	root := serve(t)(0)
	start(t, root, &v1.JobSpec{
		Name: "listed", Command: []string{"sleep", "1000"}, Labels: map[string]string{"team": "blue"}, Retention: &v1.Retention{KeepLast: 3},
	})
	list := func(brief bool) *v1.Job {
		t.Helper()
		response, err := root.List(within(t), connect.NewRequest(&v1.ListJobsRequest{Brief: brief}))
		if err != nil || len(response.Msg.GetJobs()) != 1 {
			t.Fatalf("%v, %v", response, err)
		}
		return response.Msg.GetJobs()[0]
	}
	for keep := range int32(3) {
		full, brief := list(false), list(true)
		if full.GetLastCheckpoint().GetName() != brief.GetLastCheckpoint().GetName() || keep > 0 && full.GetLastCheckpoint().GetName() != fmt.Sprintf("listed-%d", keep) {
			t.Errorf("newest checkpoints %v and %v", full.GetLastCheckpoint(), brief.GetLastCheckpoint())
		}
		if len(full.GetSpec().GetEnvironment()) != 1 || full.GetSpec().GetRetention().GetKeepLast() != 3+keep || keep > 0 && full.GetLastCheckpoint().GetDir() == "" {
			t.Errorf("in full: %v", full)
		}
		spec := brief.GetSpec()
		want := &v1.JobSpec{Name: "listed", Command: []string{"sleep", "1000"}, Labels: map[string]string{"team": "blue"}}
		if !proto.Equal(spec, want) || brief.GetPid() != full.GetPid() || brief.GetState() != v1.JobState_JOB_STATE_RUNNING || brief.GetCheckpoints() != keep {
			t.Errorf("in brief: %v", brief)
		}
		dump, err := root.Dump(within(t), connect.NewRequest(&v1.DumpJobRequest{Job: "listed"}))
		if err := ended(dump, err); err != nil {
			t.Fatal(err)
		}
		update := &v1.UpdateJobRequest{Job: "listed", Retention: &v1.Retention{KeepLast: 4 + keep}}
		if _, err := root.Update(within(t), connect.NewRequest(update)); err != nil {
			t.Fatal(err)
		}
	}
}
