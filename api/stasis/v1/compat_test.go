package stasisv1_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "stasis/api/stasis/v1" // registers the definitions of today
)

// frozen are the definitions that clients were built from, and for how long each has to be understood: as long as it is there.
// "go run ./protogen -freeze" in tools/ writes one.
func frozen(t *testing.T) map[string]*descriptorpb.FileDescriptorSet {
	t.Helper()
	paths, err := filepath.Glob("../../testdata/*.binpb")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no definitions: %v", err)
	}
	sets := make(map[string]*descriptorpb.FileDescriptorSet)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		set := new(descriptorpb.FileDescriptorSet)
		if err := proto.Unmarshal(text, set); err != nil {
			t.Fatal(err)
		}
		sets[filepath.Base(path)] = set
	}
	return sets
}

func filesOf(t *testing.T, set *descriptorpb.FileDescriptorSet) *protoregistry.Files {
	t.Helper()
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// today are the definitions that this program has.
func today(t *testing.T) *descriptorpb.FileDescriptorSet {
	t.Helper()
	set := new(descriptorpb.FileDescriptorSet)
	seen := map[string]bool{}
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("stasis.v1", func(file protoreflect.FileDescriptor) bool { add(file); return true })
	return set
}

// broken lists what a client of the old definitions would misunderstand, or miss, of the new ones: in protobuf's own form, and in JSON,
// where names count.
func broken(older, newer *protoregistry.Files) []string {
	var list []string
	say := func(d protoreflect.Descriptor, format string, args ...any) {
		list = append(list, string(d.FullName())+" "+fmt.Sprintf(format, args...))
	}
	find := func(d protoreflect.Descriptor) protoreflect.Descriptor {
		found, err := newer.FindDescriptorByName(d.FullName())
		if err != nil {
			say(d, "is gone")
			return nil
		}
		return found
	}
	var message func(m protoreflect.MessageDescriptor)
	enum := func(e protoreflect.EnumDescriptor) {
		now, ok := find(e).(protoreflect.EnumDescriptor)
		if !ok {
			return
		}
		for i := range e.Values().Len() {
			v := e.Values().Get(i)
			if n := now.Values().ByNumber(v.Number()); n == nil || n.Name() != v.Name() {
				say(v, "is not the value %d any more", v.Number())
			}
		}
	}
	message = func(m protoreflect.MessageDescriptor) {
		now, ok := find(m).(protoreflect.MessageDescriptor)
		if !ok {
			return
		}
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			n := now.Fields().ByNumber(f.Number())
			switch {
			case n == nil:
				say(f, "is not the field %d any more", f.Number())
			case shape(n) != shape(f):
				say(f, "was %s and is %s", shape(f), shape(n))
			}
		}
		for i := range m.Messages().Len() {
			message(m.Messages().Get(i))
		}
		for i := range m.Enums().Len() {
			enum(m.Enums().Get(i))
		}
	}
	older.RangeFilesByPackage("stasis.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Messages().Len() {
			message(file.Messages().Get(i))
		}
		for i := range file.Enums().Len() {
			enum(file.Enums().Get(i))
		}
		for i := range file.Services().Len() {
			for k := range file.Services().Get(i).Methods().Len() {
				m := file.Services().Get(i).Methods().Get(k)
				if n, ok := find(m).(protoreflect.MethodDescriptor); ok && call(n) != call(m) {
					say(m, "was %s and is %s", call(m), call(n))
				}
			}
		}
		return true
	})
	slices.Sort(list)
	return list
}

// shape is what both ends of a connection have to agree on of a field.
func shape(f protoreflect.FieldDescriptor) string {
	text := fmt.Sprintf("%s %s (%s in JSON), a %s", f.Cardinality(), f.Name(), f.JSONName(), f.Kind())
	if f.IsMap() {
		text += " as a map"
	}
	if f.Message() != nil {
		text += " " + string(f.Message().FullName())
	}
	if f.Enum() != nil {
		text += " " + string(f.Enum().FullName())
	}
	if f.IsPacked() {
		text += ", packed"
	}
	if f.HasPresence() {
		text += ", with presence"
	}
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		text += ", one of " + string(o.Name())
	}
	return text
}

func call(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("%s (stream: %v) to %s (stream: %v)", m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer())
}

// What clients were built from means the same today.
func TestOlderClientsAreUnderstood(t *testing.T) {
	now := filesOf(t, today(t))
	for name, set := range frozen(t) {
		then := filesOf(t, set)
		if n := then.NumFilesByPackage("stasis.v1"); n == 0 {
			t.Fatalf("%s has no definitions", name)
		}
		for _, what := range broken(then, now) {
			t.Errorf("a client of %s breaks: %s", name, what)
		}
	}
}

// The test above finds what it is there for.
func TestWhatBreaksClients(t *testing.T) {
	then := filesOf(t, today(t))
	for _, c := range []struct {
		what   string
		change func(find func(name string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto))
		want   string
	}{
		{"nothing", func(func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {}, ""},
		{"a new field", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Schedule")
			m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
				Name: proto.String("more"), Number: proto.Int32(77), Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum(),
				Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), JsonName: proto.String("more"),
			})
		}, ""},
		{"a removed field", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Resumed")
			m.Field = m.Field[1:]
		}, "stasis.v1.Resumed.pid is not the field 1 any more"},
		{"another number", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Resumed")
			m.Field[0].Number = proto.Int32(9)
		}, "stasis.v1.Resumed.pid is not the field 1 any more"},
		{"another type", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Resumed")
			m.Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_SINT32.Enum()
		}, "a int32 and is optional pid (pid in JSON), a sint32"},
		{"another name", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Resumed")
			m.Field[0].Name = proto.String("process")
		}, "optional process (pid in JSON)"},
		{"many instead of one", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			m, _ := find("Resumed")
			m.Field[0].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}, "is repeated pid"},
		{"another value of an enum", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			_, file := find("Job")
			e := file.EnumType[slices.IndexFunc(file.EnumType, func(e *descriptorpb.EnumDescriptorProto) bool { return e.GetName() == "JobState" })]
			e.Value[1].Number = proto.Int32(99)
		}, "is not the value 1 any more"},
		{"a removed method", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			_, file := find("Job")
			file.Service[0].Method = file.Service[0].Method[1:]
		}, "is gone"},
		{"a stream", func(find func(string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto)) {
			_, file := find("Job")
			file.Service[0].Method[0].ServerStreaming = proto.Bool(true)
		}, "(stream: true)"},
	} {
		t.Run(c.what, func(t *testing.T) {
			changed := proto.CloneOf(today(t))
			c.change(func(name string) (*descriptorpb.DescriptorProto, *descriptorpb.FileDescriptorProto) {
				for _, file := range changed.File {
					for _, m := range file.GetMessageType() {
						if file.GetPackage() == "stasis.v1" && m.GetName() == name {
							return m, file
						}
					}
				}
				t.Fatalf("no message %s", name)
				return nil, nil
			})
			found := strings.Join(broken(then, filesOf(t, changed)), "\n")
			if c.want == "" && found != "" || !strings.Contains(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}
