package stasis

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestErrorsOfFolders: what works on checkpoints alone tells bad input from
// damage, and does nothing when its context has ended.
func TestErrorsOfFolders(t *testing.T) {
	ctx, empty := t.Context(), t.TempDir()
	nothing := filepath.Join(empty, "nothing")
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.Mkdir(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "manifest.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	calls := map[string]func(ctx context.Context, dir string) error{
		"Verify": func(ctx context.Context, dir string) error {
			_, err := Verify(ctx, VerifyOptions{Dir: dir})
			return err
		},
		"Inspect": func(ctx context.Context, dir string) error {
			_, err := Inspect(ctx, dir)
			return err
		},
		"Export": func(ctx context.Context, dir string) error {
			_, err := Export(ctx, ExportOptions{Dir: dir, Out: filepath.Join(empty, "out")})
			return err
		},
		"Import": func(ctx context.Context, dir string) error {
			_, err := Import(ctx, ImportOptions{Path: dir, Dir: filepath.Join(empty, "imported")})
			return err
		},
	}
	for name, call := range calls {
		if err := call(ctx, nothing); !errors.Is(err, ErrInput) {
			t.Errorf("%s of nothing: %v", name, err)
		}
		want := ErrDamaged
		if name == "Import" {
			want = ErrInput // it never was a checkpoint
		}
		if err := call(ctx, broken); !errors.Is(err, want) {
			t.Errorf("%s of a broken one: %v", name, err)
		}
		if err := call(gone, broken); err == nil {
			t.Errorf("%s with a context that has ended: no error", name)
		}
	}
	for name, err := range map[string]error{
		"no Out":      second(Export(ctx, ExportOptions{Dir: broken})),
		"no Dir":      second(Import(ctx, ImportOptions{Path: broken})),
		"codec":       second(Import(ctx, ImportOptions{Path: broken, Dir: nothing, Compression: "x"})),
		"streams":     second(Import(ctx, ImportOptions{Path: broken, Dir: nothing, Streams: -1})),
		"Checkpoints": second(Checkpoints(ctx, nothing)),
	} {
		if !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := Checkpoints(ctx, filepath.Dir(broken)); err != nil || len(list) != 0 { // other programs have such files, too
		t.Errorf("what is no checkpoint is listed as %+v, %v", list, err)
	}
	if _, err := Checkpoints(gone, filepath.Dir(broken)); !errors.Is(err, context.Canceled) {
		t.Errorf("Checkpoints with a context that has ended: %v", err)
	}
	if left, _ := os.ReadDir(empty); len(left) > 0 {
		t.Errorf("something is left: %v", left)
	}
}

func second[T any](_ T, err error) error { return err }
