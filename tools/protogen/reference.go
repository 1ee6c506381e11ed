package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// reference makes the API reference from the definitions and their comments.
func reference(files linker.Files) string {
	var b strings.Builder
	b.WriteString(`# API reference

<!-- Generated from api/ by make generate: edit the definitions there. -->

The daemon serves these services over gRPC, gRPC-Web and Connect (JSON or protobuf over HTTP) on its socket;
[api-examples.md](api-examples.md) shows how to call them. A call over HTTP is a POST to ` + "`/stasis.v1.SERVICE/METHOD`" + `. In JSON, field
names are in lowerCamelCase, 64-bit numbers are strings, durations are strings such as ` + "`\"1.5s\"`" + `, times are RFC 3339 and bytes base64.

`)
	for _, file := range files {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			fmt.Fprintf(&b, "- [%s](#%s): %s\n", s.Name(), anchor(s), firstSentence(comment(s)))
		}
	}
	for _, file := range files {
		for i := range file.Services().Len() {
			service(&b, file.Services().Get(i))
		}
	}
	b.WriteString("\n# Messages\n")
	for _, d := range messages(files) {
		switch d := d.(type) {
		case protoreflect.MessageDescriptor:
			message(&b, d)
		case protoreflect.EnumDescriptor:
			enum(&b, d)
		}
	}
	return b.String()
}

func service(b *strings.Builder, s protoreflect.ServiceDescriptor) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| method | takes | gives | |\n|---|---|---|---|\n", s.Name(), comment(s))
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", m.Name(), side(m.Input(), m.IsStreamingClient()), side(m.Output(), m.IsStreamingServer()), cell(comment(m)))
	}
}

func side(d protoreflect.MessageDescriptor, stream bool) string {
	if stream {
		return "stream of " + link(d)
	}
	return link(d)
}

func message(b *strings.Builder, m protoreflect.MessageDescriptor) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n", m.Name(), comment(m))
	if m.Fields().Len() == 0 {
		return
	}
	b.WriteString("\n| field | type | |\n|---|---|---|\n")
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		text := cell(comment(f))
		if one := f.ContainingOneof(); one != nil && !one.IsSynthetic() {
			text = strings.TrimSpace(text + " *(one of `" + string(one.Name()) + "`)*")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.Name(), kind(f), text)
	}
}

func enum(b *strings.Builder, e protoreflect.EnumDescriptor) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| value | |\n|---|---|\n", e.Name(), comment(e))
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		fmt.Fprintf(b, "| `%s` | %s |\n", v.Name(), cell(comment(v)))
	}
}

func kind(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch {
	case f.IsMap():
		return fmt.Sprintf("map of %s to %s", f.MapKey().Kind(), f.MapValue().Kind())
	case f.Message() != nil:
		name = link(f.Message())
	case f.Enum() != nil:
		name = link(f.Enum())
	}
	switch {
	case f.IsList():
		return "list of " + name
	case f.HasOptionalKeyword():
		return "optional " + name
	}
	return name
}

// link leads to where a type is explained.
func link(d protoreflect.Descriptor) string {
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return string(d.Name())
	}
	return fmt.Sprintf("[%s](#%s)", d.Name(), anchor(d))
}

func anchor(d protoreflect.Descriptor) string { return strings.ToLower(string(d.Name())) }

// messages are all messages and enumerations, by name.
func messages(files linker.Files) []protoreflect.Descriptor {
	var list []protoreflect.Descriptor
	for _, file := range files {
		for i := range file.Messages().Len() {
			list = append(list, file.Messages().Get(i))
		}
		for i := range file.Enums().Len() {
			list = append(list, file.Enums().Get(i))
		}
	}
	slices.SortFunc(list, func(a, b protoreflect.Descriptor) int { return strings.Compare(string(a.Name()), string(b.Name())) })
	return list
}

// comment is what stands before a definition.
func comment(d protoreflect.Descriptor) string {
	var lines []string
	for line := range strings.SplitSeq(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments, "\n") {
		lines = append(lines, strings.TrimPrefix(line, " "))
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", "\\|")
}

func firstSentence(text string) string {
	sentence, _, _ := strings.Cut(strings.Join(strings.Fields(text), " "), ". ")
	return strings.TrimSuffix(sentence, ".") + "."
}
