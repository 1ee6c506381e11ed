package cli

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
)

// oneJobDaemon is a daemon that has one job, and notes how it is to be changed.
type oneJobDaemon struct {
	stasisv1connect.UnimplementedJobServiceHandler
	stasisv1connect.UnimplementedSystemServiceHandler

	job     *v1.Job
	changed *v1.UpdateJobRequest
}

func (d *oneJobDaemon) Status(context.Context, *connect.Request[v1.StatusRequest]) (*connect.Response[v1.StatusResponse], error) {
	return connect.NewResponse(&v1.StatusResponse{}), nil
}

func (d *oneJobDaemon) Get(_ context.Context, r *connect.Request[v1.GetJobRequest]) (*connect.Response[v1.GetJobResponse], error) {
	if r.Msg.GetJob() != d.job.GetSpec().GetName() {
		return nil, connect.NewError(connect.CodeNotFound, errNoJob)
	}
	return connect.NewResponse(&v1.GetJobResponse{Job: d.job}), nil
}

func (d *oneJobDaemon) Update(_ context.Context, r *connect.Request[v1.UpdateJobRequest]) (*connect.Response[v1.UpdateJobResponse], error) {
	d.changed = r.Msg
	return connect.NewResponse(&v1.UpdateJobResponse{Job: d.job}), nil
}

var errNoJob = badInput("no such job")

func TestUpdate(t *testing.T) {
	d := &oneJobDaemon{job: &v1.Job{Id: "1234", NextCheckpoint: timestamppb.Now(), Spec: &v1.JobSpec{
		Name:      "sum",
		Schedule:  &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(time.Minute)}},
		Retention: &v1.Retention{KeepLast: 5, KeepDaily: 7},
		Restart:   &v1.Restart{Policy: v1.RestartPolicy_RESTART_POLICY_ALWAYS, MaxRetries: 3, Delay: durationpb.New(time.Second)},
	}}}
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

	for _, c := range []struct {
		args []string
		want *v1.UpdateJobRequest
	}{
		{[]string{"--every", "10m"}, &v1.UpdateJobRequest{Schedule: &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(10 * time.Minute)}}}},
		{[]string{"--cron", "@hourly"}, &v1.UpdateJobRequest{Schedule: &v1.Schedule{When: &v1.Schedule_Cron{Cron: "@hourly"}}}},
		{[]string{"--no-schedule"}, &v1.UpdateJobRequest{Schedule: &v1.Schedule{}}},
		// What is not named stays.
		{[]string{"--keep-last", "3"}, &v1.UpdateJobRequest{Retention: &v1.Retention{KeepLast: 3, KeepDaily: 7}}},
		{[]string{"--keep-daily", "0", "--keep-bytes", "1G"}, &v1.UpdateJobRequest{Retention: &v1.Retention{KeepLast: 5, MaxBytes: 1 << 30}}},
		{[]string{"--restart", "no"}, &v1.UpdateJobRequest{Restart: &v1.Restart{
			Policy: v1.RestartPolicy_RESTART_POLICY_NO, MaxRetries: 3, Delay: durationpb.New(time.Second),
		}}},
		{[]string{"--max-retries", "0", "--restart-delay", "2s", "--from-scratch"}, &v1.UpdateJobRequest{Restart: &v1.Restart{
			Policy: v1.RestartPolicy_RESTART_POLICY_ALWAYS, Delay: durationpb.New(2 * time.Second), FromScratch: true,
		}}},
		{
			[]string{"--every", "10m", "--keep-last", "3", "--restart", "on-failure"},
			&v1.UpdateJobRequest{
				Schedule:  &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(10 * time.Minute)}},
				Retention: &v1.Retention{KeepLast: 3, KeepDaily: 7},
				Restart:   &v1.Restart{Policy: v1.RestartPolicy_RESTART_POLICY_ON_FAILURE, MaxRetries: 3, Delay: durationpb.New(time.Second)},
			},
		},
	} {
		c.want.Job = "1234"
		if code := b.run(append([]string{"update", "sum"}, c.args...)...); code != exitOK {
			t.Fatalf("%v: exit code %d: %s", c.args, code, b.err.String())
		}
		if !proto.Equal(d.changed, c.want) {
			t.Errorf("%v asks for %v, want %v", c.args, d.changed, c.want)
		}
		if !strings.HasPrefix(b.out.String(), "job sum was changed") {
			t.Errorf("%v says %q", c.args, b.out.String())
		}
	}
	if code := b.run("update", "sum", "--keep-last", "3", "-o", "json"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.err.String())
	}
	var told struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(b.out.Bytes(), &told); err != nil || told.ID != "1234" {
		t.Errorf("%v in %s", err, b.out.String())
	}
	b.says(exitFailure, []string{"update", "other", "--keep-last", "3"}, "no such job")
	b.says(exitInput, []string{"update", "sum"}, "nothing to change")
}
