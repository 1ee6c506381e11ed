package store_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// folderPlace is a folder that does not exist yet.
func folderPlace(t *testing.T, change func(*store.FolderTarget)) storetest.Place {
	t.Helper()
	path := filepath.Join(t.TempDir(), "checkpoint")
	target, err := store.CreateFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Abort() })
	if change != nil {
		change(target)
	}
	return storetest.Place{Target: target, Open: func() (store.Source, error) { return store.OpenFolder(path) }}
}

func memoryPlace() storetest.Place {
	m := storetest.NewMemory()
	return storetest.Place{Target: m, Open: func() (store.Source, error) {
		_, err := m.Manifest()
		return m, err
	}}
}

// streamPlace is a stream; opening it receives what there is of it into a new place.
func streamPlace(place func() storetest.Place) storetest.Place {
	var b bytes.Buffer
	return storetest.Place{Target: store.NewStream(&b), Open: func() (store.Source, error) {
		to := place()
		if err := store.Receive(bytes.NewReader(b.Bytes()), to.Target); err != nil {
			return nil, err
		}
		return to.Open()
	}}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	places := map[string]func(t *testing.T) storetest.Place{
		"folder": func(t *testing.T) storetest.Place {
			t.Helper()
			return folderPlace(t, nil)
		},
		"folder-named": func(t *testing.T) storetest.Place {
			t.Helper()
			return folderPlace(t, (*store.FolderTarget).NamedFiles)
		},
		"folder-buffered": func(t *testing.T) storetest.Place {
			t.Helper()
			return folderPlace(t, (*store.FolderTarget).Buffered)
		},
		"memory": func(*testing.T) storetest.Place { return memoryPlace() },
		"stream-folder": func(t *testing.T) storetest.Place {
			t.Helper()
			return streamPlace(func() storetest.Place { return folderPlace(t, nil) })
		},
		"stream-memory": func(*testing.T) storetest.Place { return streamPlace(memoryPlace) },
	}
	for name, start := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, start)
		})
	}
}
