// Command protogen makes what is generated from the protobuf definitions: the Go code of the messages and services, and the API
// reference docs/api.md. With -check it writes nothing, and fails where a file is not what it would write. With -freeze it writes the
// descriptors alone, without comments: what a client of today knows, for the tests of tomorrow (api/testdata).
//
// The definitions are compiled here, in Go, so that nobody needs a protoc; the code comes from the usual plugins, at the versions
// that this module pins.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const module = "stasis"

func main() {
	check := flag.Bool("check", false, "write nothing; fail where a file is not up to date")
	root := flag.String("root", ".", "top of the repository")
	frozen := flag.String("freeze", "", "write the descriptors to this file, and nothing else")
	flag.Parse()
	var err error
	if *frozen != "" {
		err = freeze(*root, *frozen)
	} else {
		err = run(*root, *check)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	files, err := compile(filepath.Join(root, "api"))
	if err != nil {
		return err
	}
	want := map[string]string{filepath.Join("docs", "api.md"): reference(files)}
	request := requestFor(files)
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-connect-go"} {
		made, err := generate(filepath.Join(root, "tools"), plugin, request)
		if err != nil {
			return err
		}
		for _, f := range made.GetFile() {
			want[filepath.FromSlash(f.GetName())] = f.GetContent()
		}
	}
	return put(root, want, check)
}

// freeze writes the descriptors, with those of the files that they import.
func freeze(root, path string) error {
	files, err := compile(filepath.Join(root, "api"))
	if err != nil {
		return err
	}
	set := &descriptorpb.FileDescriptorSet{File: requestFor(files).GetProtoFile()}
	for _, file := range set.File {
		file.SourceCodeInfo = nil
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// compile reads all definitions below a folder.
func compile(dir string) (linker.Files, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".proto") {
			name, relErr := filepath.Rel(dir, path)
			names, err = append(names, filepath.ToSlash(name)), relErr
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	return compiler.Compile(context.Background(), names...)
}

// requestFor makes what a plugin gets: all files that are needed, each after what it imports.
func requestFor(files linker.Files) *pluginpb.CodeGeneratorRequest {
	request := &pluginpb.CodeGeneratorRequest{Parameter: proto.String("module=" + module)}
	seen := make(map[string]bool)
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, fileProto(file))
	}
	for _, file := range files {
		add(file)
		request.FileToGenerate = append(request.FileToGenerate, file.Path())
	}
	return request
}

func fileProto(file protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	return protoutil.ProtoFromFileDescriptor(file)
}

// generate runs a plugin.
func generate(tools, plugin string, request *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, error) {
	input, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "tool", plugin)
	cmd.Dir, cmd.Stdin, cmd.Stderr = tools, bytes.NewReader(input), os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plugin, err)
	}
	response := new(pluginpb.CodeGeneratorResponse)
	if err := proto.Unmarshal(output, response); err != nil {
		return nil, fmt.Errorf("%s: %w", plugin, err)
	}
	if response.Error != nil {
		return nil, fmt.Errorf("%s: %s", plugin, response.GetError())
	}
	return response, nil
}

// put writes the files, or compares them.
func put(root string, want map[string]string, check bool) error {
	var stale []string
	for name, text := range want {
		path := filepath.Join(root, name)
		if found, err := os.ReadFile(path); err == nil && string(found) == text {
			continue
		}
		stale = append(stale, name)
		if check {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	slices.Sort(stale)
	if check && len(stale) > 0 {
		return fmt.Errorf("not what api/ says: %s: run 'make generate' and commit the result", strings.Join(stale, ", "))
	}
	for _, name := range stale {
		fmt.Println("generate: wrote", name)
	}
	return nil
}
