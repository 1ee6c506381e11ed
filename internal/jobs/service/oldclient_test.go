package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"stasis/client"
	"stasis/internal/require"
)

// oldClient knows of the API what frozen definitions say (api/testdata), and nothing that came later.
type oldClient struct {
	files   *protoregistry.Files
	to      *client.Client
	options []connect.ClientOption
}

// definitions reads what a client was built from once.
func definitions(t *testing.T) *descriptorpb.FileDescriptorSet {
	t.Helper()
	text, err := os.ReadFile("../../../api/testdata/d5d2782.binpb")
	if err != nil {
		t.Fatal(err)
	}
	set := new(descriptorpb.FileDescriptorSet)
	if err := proto.Unmarshal(text, set); err != nil {
		t.Fatal(err)
	}
	return set
}

// older takes fields, and values of enums, out of definitions: what a daemon says of these a client does not know.
func older(set *descriptorpb.FileDescriptorSet, fields map[string][]string, values ...string) *descriptorpb.FileDescriptorSet {
	set = proto.CloneOf(set)
	for _, file := range set.File {
		if file.GetPackage() != "stasis.v1" {
			continue
		}
		for _, m := range file.MessageType {
			m.Field = slices.DeleteFunc(m.Field, func(f *descriptorpb.FieldDescriptorProto) bool {
				return slices.Contains(fields[m.GetName()], f.GetName())
			})
		}
		for _, e := range file.EnumType {
			e.Value = slices.DeleteFunc(e.Value, func(v *descriptorpb.EnumValueDescriptorProto) bool { return slices.Contains(values, v.GetName()) })
		}
	}
	return set
}

// stream calls a method with a request in JSON. each sees every answer, until it wants no more.
func (c *oldClient) stream(ctx context.Context, method, request string, change func(*dynamicpb.Message), each func(map[string]any, *dynamicpb.Message) bool) error {
	found, err := c.files.FindDescriptorByName(protoreflect.FullName("stasis.v1." + method))
	if err != nil {
		return err
	}
	m, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return fmt.Errorf("%s is no method", method)
	}
	q := connect.NewRequest(dynamicpb.NewMessage(m.Input()))
	if err := (protojson.UnmarshalOptions{Resolver: dynamicpb.NewTypes(c.files)}).Unmarshal([]byte(request), q.Msg); err != nil {
		return err
	}
	if change != nil {
		change(q.Msg)
	}
	answer := connect.WithResponseInitializer(func(_ connect.Spec, message any) error {
		into, ok := message.(*dynamicpb.Message)
		if !ok {
			return fmt.Errorf("a %T", message)
		}
		*into = *dynamicpb.NewMessage(m.Output())
		return nil
	})
	path := c.to.BaseURL + "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	rpc := connect.NewClient[dynamicpb.Message, dynamicpb.Message](c.to.HTTP, path, append(c.options, connect.WithSchema(m), answer)...)
	see := func(message *dynamicpb.Message) (bool, error) {
		text, err := (protojson.MarshalOptions{Resolver: dynamicpb.NewTypes(c.files), EmitDefaultValues: true}).Marshal(message)
		if err != nil {
			return false, err
		}
		var values map[string]any
		if err := json.Unmarshal(text, &values); err != nil {
			return false, err
		}
		return each(values, message), nil
	}
	if !m.IsStreamingServer() {
		response, err := rpc.CallUnary(ctx, q)
		if err != nil {
			return err
		}
		_, err = see(response.Msg)
		return err
	}
	stream, err := rpc.CallServerStream(ctx, q)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if more, err := see(stream.Msg()); err != nil || !more {
			return err
		}
	}
	return stream.Err()
}

// call gives the last answer.
func (c *oldClient) call(t *testing.T, method, request string) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last map[string]any
	if err := c.stream(ctx, method, request, nil, func(values map[string]any, _ *dynamicpb.Message) bool { last = values; return true }); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return last
}

// at finds a value by its path, such as "result.checkpoint.name".
func at(values map[string]any, path string) any {
	var v any = values
	for key := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			if len(in) == 0 {
				return nil
			}
			v = in[0].(map[string]any)[key]
		default:
			return nil
		}
	}
	return v
}

// sleeper starts a program that does nothing and ends with the test.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// A client that was built from earlier definitions works with the daemon of today, in each of its protocols.
func TestOlderClients(t *testing.T) {
	require.CRIU(t)
	daemonClient := serveAll(t, daemonFor(t), nil)
	pid := sleeper(t)
	all := definitions(t)
	less := older(all, map[string][]string{"Checkpoint": {"bytes", "command"}, "Job": {"checkpoints"}, "Event": {"message"}, "Progress": {"step"}},
		"JOB_STATE_RUNNING", "EVENT_KIND_CREATED", "CHECKPOINT_KIND_FULL")
	for _, protocol := range []struct {
		name    string
		options []connect.ClientOption
	}{
		{"connect", nil},
		{"json", []connect.ClientOption{connect.WithProtoJSON()}},
		{"grpc", []connect.ClientOption{connect.WithGRPC()}},
	} {
		for name, set := range map[string]*descriptorpb.FileDescriptorSet{"then": all, "before": less} {
			t.Run(protocol.name+"-"+name, func(t *testing.T) {
				files, err := protodesc.NewFiles(set)
				if err != nil {
					t.Fatal(err)
				}
				c := &oldClient{files: files, to: daemonClient, options: protocol.options}
				c.works(t, pid, protocol.name+"-"+name)
				c.isTold(t, protocol.name == "json")
			})
		}
	}
}

// works does what clients do.
func (c *oldClient) works(t *testing.T, pid int, name string) {
	t.Helper()
	expect := func(values map[string]any, path string, want any) {
		t.Helper()
		if got := at(values, path); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v, in %v", path, got, want, values)
		}
	}
	if v := at(c.call(t, "SystemService.Version", "{}"), "format"); v == nil || v.(float64) < 1 {
		t.Errorf("format %v", v)
	}
	dump := c.call(t, "CheckpointService.Dump", fmt.Sprintf(`{"pid": %d, "name": %q, "after": "AFTER_RUN"}`, pid, name))
	expect(dump, "result.checkpoint.name", name)
	expect(dump, "result.checkpoint.rootPid", pid)
	if n := at(dump, "result.checkpoint.figures.bytesMemory"); n == nil || n == "0" {
		t.Errorf("no memory in %v", dump)
	}
	expect(c.call(t, "CheckpointService.List", `{"pageSize": 1}`), "checkpoints.name", name)
	expect(c.call(t, "CheckpointService.Get", fmt.Sprintf(`{"checkpoint": %q}`, name)), "checkpoint.name", name)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := c.call(t, "JobService.Run", fmt.Sprintf(`{"spec": {"name": %q, "command": ["sleep", "1000"], "retention": {"keepLast": 3}}}`, name))
	expect(begun, "job.spec.name", name)
	expect(c.call(t, "JobService.List", "{}"), "jobs.spec.retention.keepLast", 3)
	var jobs []any
	since := fmt.Sprintf(`{"job": %q, "follow": true, "since": "2020-01-01T00:00:00Z"}`, name)
	err := c.stream(ctx, "JobService.Events", since, nil, func(v map[string]any, _ *dynamicpb.Message) bool {
		jobs = append(jobs, at(v, "event.job"))
		return len(jobs) < 2
	})
	if err != nil || len(jobs) != 2 || jobs[0] != name {
		t.Errorf("events of %v, %v", jobs, err)
	}
	expect(c.call(t, "JobService.Dump", fmt.Sprintf(`{"job": %q}`, name)), "result.checkpoint.job", name)
	expect(c.call(t, "JobService.Update", fmt.Sprintf(`{"job": %q, "retention": {"keepLast": 4}}`, name)), "job.spec.retention.keepLast", 4)
	expect(c.call(t, "JobService.Remove", fmt.Sprintf(`{"job": %q, "force": true, "checkpoints": true}`, name)), "job.spec.name", name)
}

// isTold sends what the daemon does not know, as a client that is newer than the daemon does: fields are ignored, and a value that asks for
// something else than the daemon can do is refused.
func (c *oldClient) isTold(t *testing.T, inJSON bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ignore := func(map[string]any, *dynamicpb.Message) bool { return true }
	if !inJSON { // where there are no numbers of fields
		unknown := protowire.AppendVarint(protowire.AppendTag(nil, 5000, protowire.VarintType), 1)
		if err := c.stream(ctx, "CheckpointService.List", `{}`, func(m *dynamicpb.Message) { m.SetUnknown(unknown) }, ignore); err != nil {
			t.Errorf("an unknown field: %v", err)
		}
	}
	err := c.stream(ctx, "CheckpointService.List", `{"kind": 77}`, nil, ignore)
	if failed := (*connect.Error)(nil); !errors.As(err, &failed) || failed.Code() != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "newer than the daemon") {
		t.Errorf("an unknown value: %v", err)
	}
}
