package image_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
)

const schemaPath = "../../docs/manifest.schema.json"

var update = flag.Bool("update", false, "write docs/manifest.schema.json anew")

// constraints are what the schema says of a member beyond its type.
var constraints = map[string]map[string]any{
	"Manifest.format":   {"minimum": image.PlainVersion, "maximum": image.FormatVersion},
	"Manifest.id":       {"pattern": "^[0-9a-f]{32}$"},
	"Manifest.kind":     {"enum": []string{image.KindFull, image.KindPreDump}},
	"Manifest.codec":    {"enum": []string{"none", "lz4", "zstd", "gzip", "zlib"}},
	"Manifest.shards":   {"minItems": 1, "maxItems": image.MaxShards},
	"Manifest.checksum": {"pattern": "^[0-9a-f]{16}$"},
	"Host.page_size":    {"const": image.PageSize},
	"Shard.name":        {"pattern": "^img-[0-9]+$"},
	"Shard.digest":      {"pattern": "^[0-9a-f]{16}$"},
	"Origin.id":         {"pattern": "^[0-9a-f]{32}$"},
}

// schema is the part of JSON Schema that is used here.
type schema struct {
	Schema      string             `json:"$schema,omitempty"`
	Title       string             `json:"title,omitempty"`
	Description string             `json:"description,omitempty"`
	Type        any                `json:"type,omitempty"`
	Format      string             `json:"format,omitempty"`
	Const       any                `json:"const,omitempty"`
	Minimum     int                `json:"minimum,omitempty"`
	Maximum     int                `json:"maximum,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	Pattern     string             `json:"pattern,omitempty"`
	MinItems    int                `json:"minItems,omitempty"`
	MaxItems    int                `json:"maxItems,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	Values      *schema            `json:"additionalProperties,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Required    []string           `json:"required,omitempty"`
}

// TestSchemaIsFresh keeps the documented schema and the Go types together. The schema's descriptions are the types' comments.
func TestSchemaIsFresh(t *testing.T) {
	comments := fieldComments(t)
	s := schemaOf(t, reflect.TypeFor[image.Manifest](), comments)
	s.Schema, s.Title = "https://json-schema.org/draft/2020-12/schema", "Manifest of a Stasis checkpoint"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaPath, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaPath)
	if err != nil || !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s does not describe Manifest (%v): run go test ./internal/image -run Schema -update and commit it", schemaPath, err)
	}
}

// fieldComments returns the comments of the package's types, by their name, and of their fields, as Type.Field.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "manifest.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range file.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.TYPE {
			continue
		}
		for _, spec := range decl.Specs {
			name := spec.(*ast.TypeSpec).Name.Name
			out[name] = text(decl.Doc)
			fields, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range fields.Fields.List {
				for _, n := range f.Names {
					out[name+"."+n.Name] = strings.TrimSpace(text(f.Doc) + " " + text(f.Comment))
				}
			}
		}
	}
	return out
}

func text(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

func schemaOf(t *testing.T, typ reflect.Type, comments map[string]string) *schema {
	t.Helper()
	switch {
	case typ == reflect.TypeFor[time.Time]():
		return &schema{Type: "string", Format: "date-time"}
	case typ.Kind() == reflect.String:
		return &schema{Type: "string"}
	case typ.Kind() == reflect.Bool:
		return &schema{Type: "boolean"}
	case typ.Kind() == reflect.Float64:
		return &schema{Type: "number"}
	case typ.Kind() >= reflect.Int && typ.Kind() <= reflect.Uint64:
		return &schema{Type: "integer"}
	case typ.Kind() == reflect.Pointer:
		return schemaOf(t, typ.Elem(), comments)
	case typ.Kind() == reflect.Slice: // a nil one is null, where it is not left out
		return &schema{Type: []string{"array", "null"}, Items: schemaOf(t, typ.Elem(), comments)}
	case typ.Kind() == reflect.Map:
		return &schema{Type: "object", Values: schemaOf(t, typ.Elem(), comments)}
	case typ.Kind() != reflect.Struct:
		t.Fatalf("there is no schema for %v", typ)
	}
	s := &schema{Type: "object", Description: comments[typ.Name()], Properties: map[string]*schema{}}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			t.Errorf("%s.%s has no name in JSON", typ.Name(), f.Name)
			continue
		}
		p := schemaOf(t, f.Type, comments)
		if strings.Contains(options, "omitempty") && f.Type.Kind() == reflect.Slice {
			p.Type = "array"
		} else if !strings.Contains(options, "omit") {
			s.Required = append(s.Required, name)
		}
		if c := comments[typ.Name()+"."+f.Name]; c != "" {
			p.Description = c
		}
		constrain(t, p, constraints[typ.Name()+"."+name])
		s.Properties[name] = p
	}
	return s
}

// constrain adds constraints to p, and sees that each is one that schema knows.
func constrain(t *testing.T, p *schema, c map[string]any) {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(p); err != nil {
		t.Fatal(err)
	}
}

// TestManifestsFollowTheSchema checks what a Writer writes, and a manifest in which everything is filled in.
func TestManifestsFollowTheSchema(t *testing.T) {
	b, err := os.ReadFile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	follows(t, &s, imagetest.SmallCheckpoint(t, 3, "zstd", imagetest.ID).Text)

	full := new(image.Manifest)
	fill(reflect.ValueOf(full).Elem())
	full.Format, full.Kind, full.Host.PageSize, full.Codec = image.FormatVersion, image.KindPreDump, image.PageSize, "lz4"
	full.ID, full.Origins[0].ID = strings.Repeat("0a", 16), strings.Repeat("0b", 16)
	full.Shards = []image.Shard{{Name: "img-0", Size: 1000, Digest: "0123456789abcdef"}}
	text, err := full.Encode()
	if err != nil {
		t.Fatal(err)
	}
	follows(t, &s, text)
	back, err := image.DecodeManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(full, back) {
		t.Errorf("%+v came back as %+v", full, back)
	}
}

// fill puts something into everything, so that nothing is left out for being empty.
func fill(v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case v.Kind() == reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), value)
	case v.Kind() == reflect.String:
		v.SetString("text")
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(5)
	case v.CanUint():
		v.SetUint(6)
	case v.CanFloat():
		v.SetFloat(0.5)
	}
}

func follows(t *testing.T, s *schema, text []byte) {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	for _, fault := range s.faults(v, "manifest") {
		t.Error(fault)
	}
}

// faults lists where v does not follow s. It is strict: a member that the schema does not know is a fault.
func (s *schema) faults(v any, at string) (out []string) {
	fault := func(format string, args ...any) { out = append(out, at+": "+fmt.Sprintf(format, args...)) }
	if s.Const != nil && v != s.Const {
		fault("%v instead of %v", v, s.Const)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				fault("%s is missing", name)
			}
		}
		for name, member := range v {
			switch p := s.Properties[name]; {
			case p != nil:
				out = append(out, p.faults(member, at+"."+name)...)
			case s.Values != nil:
				out = append(out, s.Values.faults(member, at+"."+name)...)
			default:
				fault("%s is not in the schema", name)
			}
		}
	case []any:
		if len(v) < s.MinItems || s.MaxItems > 0 && len(v) > s.MaxItems {
			fault("%d items", len(v))
		}
		for i, item := range v {
			out = append(out, s.Items.faults(item, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case string:
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(v) {
			fault("%q does not match %s", v, s.Pattern)
		}
		if s.Enum != nil && !strings.Contains(" "+strings.Join(s.Enum, " ")+" ", " "+v+" ") {
			fault("%q is none of %q", v, s.Enum)
		}
	}
	if !s.allows(v) {
		fault("%v is not of type %v", v, s.Type)
	}
	return out
}

func (s *schema) allows(v any) bool {
	names := map[string]string{"<nil>": "null", "bool": "boolean", "float64": "integer", "string": "string",
		"map[string]interface {}": "object", "[]interface {}": "array"}
	return strings.Contains(fmt.Sprint(s.Type)+" ", names[fmt.Sprintf("%T", v)]) || fmt.Sprint(s.Type) == "number"
}
