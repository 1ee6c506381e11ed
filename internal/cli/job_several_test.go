package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/wire"
)

// jobsDaemon has jobs a, b and c. What is asked of "busy" conflicts, and of others there are none.
type jobsDaemon struct {
	stasisv1connect.UnimplementedJobServiceHandler
	stasisv1connect.UnimplementedSystemServiceHandler

	asked []string
}

func (d *jobsDaemon) job(name string) (*v1.Job, error) {
	d.asked = append(d.asked, name)
	switch name {
	case "a", "b", "c":
		return &v1.Job{Id: name, Spec: &v1.JobSpec{Name: name}, State: v1.JobState_JOB_STATE_KILLED}, nil
	case "busy":
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("it runs"))
	}
	return nil, wire.Error(errors.Join(wire.ErrUnknown, errors.New("no such job: "+name)))
}

func (d *jobsDaemon) Status(context.Context, *connect.Request[v1.StatusRequest]) (*connect.Response[v1.StatusResponse], error) {
	return connect.NewResponse(&v1.StatusResponse{}), nil
}

func (d *jobsDaemon) List(context.Context, *connect.Request[v1.ListJobsRequest]) (*connect.Response[v1.ListJobsResponse], error) {
	response := &v1.ListJobsResponse{}
	for _, name := range []string{"a", "b", "c"} {
		j, _ := d.job(name)
		response.Jobs = append(response.Jobs, j)
	}
	return connect.NewResponse(response), nil
}

func (d *jobsDaemon) Kill(_ context.Context, r *connect.Request[v1.KillRequest]) (*connect.Response[v1.KillResponse], error) {
	j, err := d.job(r.Msg.GetJob())
	return connect.NewResponse(&v1.KillResponse{Job: j}), err
}

func (d *jobsDaemon) Remove(_ context.Context, r *connect.Request[v1.RemoveJobRequest]) (*connect.Response[v1.RemoveJobResponse], error) {
	j, err := d.job(r.Msg.GetJob())
	return connect.NewResponse(&v1.RemoveJobResponse{Job: j}), err
}

func (d *jobsDaemon) Get(_ context.Context, r *connect.Request[v1.GetJobRequest]) (*connect.Response[v1.GetJobResponse], error) {
	j, err := d.job(r.Msg.GetJob())
	return connect.NewResponse(&v1.GetJobResponse{Job: j}), err
}

func (d *jobsDaemon) Update(_ context.Context, r *connect.Request[v1.UpdateJobRequest]) (*connect.Response[v1.UpdateJobResponse], error) {
	return connect.NewResponse(&v1.UpdateJobResponse{Job: &v1.Job{Spec: &v1.JobSpec{Name: r.Msg.GetJob()}}}), nil
}

func (d *jobsDaemon) Dump(_ context.Context, r *connect.Request[v1.DumpJobRequest], stream *connect.ServerStream[v1.DumpResponse]) error {
	if _, err := d.job(r.Msg.GetJob()); err != nil {
		return err
	}
	return stream.Send(&v1.DumpResponse{Event: &v1.DumpResponse_Result{Result: &v1.DumpResult{Checkpoint: &v1.Checkpoint{Name: r.Msg.GetJob() + "-1"}}}})
}

func (d *jobsDaemon) Restore(_ context.Context, r *connect.Request[v1.RestoreJobRequest], stream *connect.ServerStream[v1.RestoreResponse]) error {
	if _, err := d.job(r.Msg.GetJob()); err != nil {
		return err
	}
	return stream.Send(&v1.RestoreResponse{Event: &v1.RestoreResponse_Result{Result: &v1.RestoreResult{Pid: 7}}})
}

func severalOf(t *testing.T) (*jobsDaemon, *bench) {
	t.Helper()
	d := new(jobsDaemon)
	mux := http.NewServeMux()
	mux.Handle(stasisv1connect.NewJobServiceHandler(d))
	mux.Handle(stasisv1connect.NewSystemServiceHandler(d))
	socket := filepath.Join(t.TempDir(), "s.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	b := newBench(t)
	b.environ = append(b.environ, "STASIS_DAEMON_SOCKET="+socket)
	return d, b
}

// Commands that take several jobs do all that can be done, say what cannot, and exit with what went wrong.
func TestSeveralJobs(t *testing.T) {
	d, b := severalOf(t)
	for _, c := range []struct {
		command []string
		says    string // of a job, of which NAME is the name
	}{
		{[]string{"kill"}, "job NAME is killed"}, {[]string{"rm", "job"}, "removed job NAME"}, {[]string{"update", "--keep-last", "3"}, "job NAME was changed"},
		{[]string{"dump", "job"}, "NAME-1: "}, {[]string{"restore", "job"}, "job NAME had no checkpoint"},
	} {
		run := func(names ...string) int { d.asked = nil; return b.run(append(slices.Clone(c.command), names...)...) }
		alone := map[string]int{"none": run("none"), "busy": run("busy")}
		if alone["none"] == exitOK || alone["busy"] == exitOK || alone["none"] == alone["busy"] {
			t.Fatalf("%v: exit codes %v", c.command, alone)
		}
		if code := run(); code != exitInput || len(d.asked) != 0 {
			t.Errorf("%v without a job: exit code %d", c.command, code)
		}
		for _, s := range []struct {
			names []string
			code  int
		}{
			{[]string{"a", "b", "c"}, exitOK}, {[]string{"a", "none", "c"}, alone["none"]}, {[]string{"busy", "b"}, alone["busy"]},
			{[]string{"none", "a", "busy"}, exitFailure}, {[]string{"none", "no-other"}, alone["none"]},
		} {
			if code := run(s.names...); code != s.code || !slices.Equal(d.asked, s.names) {
				t.Errorf("%v %v: exit code %d, want %d; asked for %v", c.command, s.names, code, s.code, d.asked)
			}
			for _, name := range s.names {
				good := len(name) == 1
				if said := strings.Contains(b.out.String(), strings.ReplaceAll(c.says, "NAME", name)); said != good {
					t.Errorf("%v %v says of %s:\n%s", c.command, s.names, name, b.out.String())
				}
				if said := strings.Contains(b.err.String(), "stasis: "+name+": "); said == good {
					t.Errorf("%v %v complains of %s:\n%s", c.command, s.names, name, b.err.String())
				}
			}
			// For programs there is one array, in the order of the names.
			code := run(append(slices.Clone(s.names), "-o", "json")...)
			var list []struct {
				Job   json.RawMessage `json:"job"`
				Error string          `json:"error"`
				Kind  string          `json:"kind"`
				Code  int             `json:"exit_code"`
			}
			if err := json.Unmarshal([]byte(b.out.String()), &list); err != nil || code != s.code || len(list) != len(s.names) || b.err.String() != "" {
				t.Fatalf("%v %v: %v, exit code %d\n%s%s", c.command, s.names, err, code, b.out.String(), b.err.String())
			}
			for i, name := range s.names {
				if failed := list[i].Error != "" && list[i].Kind != "" && list[i].Code == alone[map[bool]string{true: "busy", false: "none"}[name == "busy"]] &&
					string(list[i].Job) == `"`+name+`"`; failed == (len(name) == 1) {
					t.Errorf("%v %v: of %s %+v", c.command, s.names, name, list[i])
				}
			}
		}
		var one map[string]any
		if code := run("a", "-o", "json"); code != exitOK || json.Unmarshal([]byte(b.out.String()), &one) != nil {
			t.Errorf("%v of one: exit code %d, %s", c.command, code, b.out.String())
		}
	}
	if code := b.run("restore", "job", "a", "b", "--at", "3"); code != exitInput {
		t.Errorf("one checkpoint of two jobs: exit code %d", code)
	}
}

// Names of jobs are completed, those that stand there already left out.
func TestJobsAreCompleted(t *testing.T) {
	_, b := severalOf(t)
	for args, want := range map[string]string{
		"kill": "a b c", "kill a": "b c", "rm job c a": "b", "dump job": "a b c", "restore job b": "a c", "update": "a b c", "evacuate a": "b c",
		"logs": "a b c", "logs a": "", "attach": "a b c", "events": "a b c", "checkpoints --job": "a b c",
	} {
		if code := b.run(append(append([]string{"__complete"}, strings.Fields(args)...), "")...); code != exitOK {
			t.Fatalf("%s: exit code %d", args, code)
		}
		var names []string
		for line := range strings.Lines(b.out.String()) {
			if name, state, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && state == "killed" {
				names = append(names, name)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: completed to %q, want %q\n%s", args, got, want, b.out.String())
		}
	}
}
