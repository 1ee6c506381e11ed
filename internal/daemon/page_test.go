package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/catalog/catalogtest"
	"stasis/internal/engine"
	"stasis/internal/require"
)

// withPage serves a page on some free port.
func withPage(o *Options) { o.Config.Daemon.Page = "127.0.0.1:0" }

// tab is a page that somebody has opened.
type tab struct {
	t              *testing.T
	address, token string
}

// open asks for a link as a user, and opens it.
func (b *bench) open(t *testing.T, uid int) *tab {
	t.Helper()
	response, err := b.system(t, uid).Page(t.Context(), connect.NewRequest(&v1.PageRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	address, code, ok := strings.Cut(response.Msg.GetUrl(), "/#")
	if !ok || !strings.HasPrefix(address, "http://127.0.0.1:") {
		t.Fatalf("the link is %s", response.Msg.GetUrl())
	}
	p := &tab{t: t, address: address}
	text, status := p.post("/session", `{"code": "`+code+`"}`)
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || status != http.StatusOK {
		t.Fatalf("the code gave %d %s", status, text)
	}
	p.token = answer.Token
	return p
}

func (p *tab) post(path, body string) (text []byte, status int) {
	p.t.Helper()
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.address+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Origin", p.address)
	if p.token != "" {
		request.Header.Set("Authorization", "Bearer "+p.token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return text, response.StatusCode
}

// names are the names of checkpoints in the list that the page gets.
func (p *tab) names() string {
	p.t.Helper()
	text, status := p.post(stasisv1connect.CheckpointServiceListProcedure, "{}")
	var list struct {
		Checkpoints []struct {
			Name string `json:"name"`
		} `json:"checkpoints"`
	}
	if err := json.Unmarshal(text, &list); err != nil || status != http.StatusOK {
		p.t.Fatalf("%d %s", status, text)
	}
	var names []string
	for _, c := range list.Checkpoints {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

// The page is off unless somebody asks for it, and says then how to have it.
func TestPageIsOff(t *testing.T) {
	b := serve(t, nil)
	_, err := b.system(t, 0).Page(t.Context(), connect.NewRequest(&v1.PageRequest{}))
	expect(t, "a link", err, connect.CodeFailedPrecondition, "daemon.page")
}

// What the page shows is what whoever asked for the link may see, and those who may not call the daemon get no link.
func TestPageShowsWhatTheCallerMaySee(t *testing.T) {
	require.Root(t)
	b := serve(t, withPage)
	roots, theirs := filepath.Join(b.config.Checkpoint.Dir, "roots"), filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(nobody), "theirs")
	id := catalogtest.Make(t, roots, catalogtest.Options{})
	catalogtest.Make(t, theirs, catalogtest.Options{})
	if got := b.open(t, 0).names(); !strings.Contains(got, "roots") || !strings.Contains(got, "theirs") {
		t.Errorf("root's page has %q", got)
	}
	p := b.open(t, nobody)
	if got := p.names(); got != "theirs" {
		t.Errorf("a user's page has %q", got)
	}
	for _, ref := range []string{"roots", id, id[:8], roots} {
		if text, status := p.post(stasisv1connect.CheckpointServiceMapProcedure, `{"checkpoint": "`+ref+`"}`); status != http.StatusNotFound || bytes.Contains(text, []byte("heap")) {
			t.Errorf("the map of root's %s: %d %s", ref, status, text)
		}
	}
	if text, status := p.post(stasisv1connect.CheckpointServiceGroupsProcedure, "{}"); status != http.StatusOK || bytes.Count(text, []byte("newest")) != 1 || !bytes.Contains(text, []byte(strconv.Itoa(nobody))) {
		t.Errorf("groups: %d %s", status, text)
	}
	if text, status := p.post(stasisv1connect.CheckpointServiceMapProcedure, `{"checkpoint": "theirs"}`); status != http.StatusOK || !bytes.Contains(text, []byte(`"cells"`)) {
		t.Errorf("the map of his own: %d %s", status, text)
	}
	_, err := b.system(t, stranger).Page(t.Context(), connect.NewRequest(&v1.PageRequest{}))
	expect(t, "a stranger's link", err, connect.CodePermissionDenied, "daemon.allow_users")
}

// environmentJobs has one job, with a password in its environment.
type environmentJobs struct {
	stasisv1connect.UnimplementedJobServiceHandler
	job *v1.Job
}

const password = "hunter2-hunter2"

// List gives one and the same message to all.
func (j environmentJobs) List(context.Context, *connect.Request[v1.ListJobsRequest]) (*connect.Response[v1.ListJobsResponse], error) {
	return connect.NewResponse(&v1.ListJobsResponse{Jobs: []*v1.Job{j.job}, Total: 1}), nil
}
func (environmentJobs) Options() connect.HandlerOption   { return connect.WithHandlerOptions() }
func (environmentJobs) Counts(uint32) (all, running int) { return 1, 0 }
func (environmentJobs) Needed() bool                     { return false }
func (environmentJobs) Close(context.Context) error      { return nil }

// Neither a byte of memory nor the environment of a job comes to the page, whatever it asks.
func TestPageHasNoSecrets(t *testing.T) {
	b := serve(t, func(o *Options) {
		withPage(o)
		o.Jobs = func(*engine.Engine, *slog.Logger) (Jobs, error) {
			job := &v1.Job{Spec: &v1.JobSpec{Name: "job", Command: []string{"serve"}, Environment: []string{"PASSWORD=" + password}}}
			return environmentJobs{job: job}, nil
		}
	})
	parent, child := filepath.Join(b.config.Checkpoint.Dir, "parent"), filepath.Join(b.config.Checkpoint.Dir, "child")
	catalogtest.Make(t, parent, catalogtest.Options{})
	catalogtest.Make(t, child, catalogtest.Options{Parent: parent})
	p := b.open(t, 0)
	found := 0
	for _, method := range []string{
		stasisv1connect.SystemServiceStatusProcedure, stasisv1connect.SystemServiceVersionProcedure, stasisv1connect.JobServiceListProcedure,
		stasisv1connect.CheckpointServiceListProcedure, stasisv1connect.CheckpointServiceGroupsProcedure, stasisv1connect.CheckpointServiceMapProcedure,
	} {
		text, status := p.post(method, map[bool]string{true: `{"checkpoint": "child", "cells": 4096}`, false: "{}"}[method == stasisv1connect.CheckpointServiceMapProcedure])
		if status != http.StatusOK {
			t.Errorf("%s: %d %s", method, status, text)
		}
		found += bytes.Count(text, []byte(`"child"`)) + bytes.Count(text, []byte(`"serve"`))
		for what, secret := range map[string]string{"memory": "stasis..stasis..", "environment": password, "memory in base64": "c3Rhc2lzLi5zdGFzaXMu"} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s gives %s: %s", method, what, text)
			}
		}
	}
	if found < 3 {
		t.Errorf("what it should show was there %d times", found)
	}
	for _, method := range []string{stasisv1connect.CheckpointServiceGetProcedure, stasisv1connect.JobServiceLogsProcedure, stasisv1connect.SystemServiceStopProcedure, "/metrics"} {
		if text, status := p.post(method, `{"checkpoint": "child"}`); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", method, status, text)
		}
	}
	// On the socket the environment is there as ever.
	list, err := stasisv1connect.NewJobServiceClient(b.httpAs(t, 0), baseURL).List(t.Context(), connect.NewRequest(&v1.ListJobsRequest{}))
	if err != nil || len(list.Msg.GetJobs()[0].GetSpec().GetEnvironment()) != 1 {
		t.Errorf("on the socket: %v, %v", list, err)
	}
}

// Somebody who takes the page's port keeps the daemon from nothing but the page: there is no link that leads to him. When he is gone,
// there is one.
func TestPageWhosePortIsTaken(t *testing.T) {
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	b := serve(t, func(o *Options) { o.Config.Daemon.Page = squatter.Addr().String() })
	if _, err := b.checkpoints(t, 0).List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{})); err != nil {
		t.Error(err)
	}
	_, err = b.system(t, 0).Page(t.Context(), connect.NewRequest(&v1.PageRequest{}))
	expect(t, "a link", err, connect.CodeFailedPrecondition, "in use", "daemon.page")
	squatter.Close()
	b.open(t, 0).names()
}

// What a token may do ends with the daemon that gave it: one that serves on its address later, whosever it is, learns nothing that is of
// use.
func TestPageEndsWithItsDaemon(t *testing.T) {
	first, second := serve(t, withPage), serve(t, withPage)
	p := first.open(t, 0)
	p.names()
	first.Abandon()
	<-first.served
	first.served <- nil // for the end of the test
	if conn, err := net.Dial("tcp", strings.TrimPrefix(p.address, "http://")); err == nil {
		conn.Close()
		t.Error("the page outlives its daemon")
	}
	p.address = second.open(t, 0).address
	if text, status := p.post(stasisv1connect.CheckpointServiceListProcedure, "{}"); status != http.StatusUnauthorized {
		t.Errorf("another daemon takes the token: %d %s", status, text)
	}
}
