package image

import (
	"os"
	"testing"

	"github.com/zeebo/xxh3"
)

func FuzzManifest(f *testing.F) {
	for _, path := range []string{"testdata/v1/manifest.json", "testdata/v2-2/manifest.json"} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"format": 2, "stasis": "x"}`))
	f.Add([]byte(`{"format":1,"shards":[{"name":"img-0","size":1000000000000,"digest":""}],"checksum": "0123456789abcdef"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if at, err := checksumAt(text); err == nil { // let it through the checksum
			copy(text[at:], noChecksum)
			copy(text[at:], HexSum(xxh3.Hash(text)))
		}
		m, err := DecodeManifest(text)
		if err != nil {
			return
		}
		if again, err := m.Encode(); err != nil {
			t.Fatal(err)
		} else if _, err := DecodeManifest(again); err != nil {
			t.Fatalf("what was decoded can't be encoded: %v", err)
		}
	})
}
