package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"stasis/internal/store"
)

// ReadManifest reads and checks a checkpoint's manifest alone, which is enough to list it. Errors are those of [Open].
func ReadManifest(src store.Source) (*Manifest, error) {
	text, err := src.Manifest()
	if err != nil {
		return nil, err
	}
	m, err := decodeManifest(text)
	if err == nil {
		return m, nil
	}
	var version *VersionError
	if errors.As(err, &version) {
		version.Checkpoint = src.Name()
		return nil, version
	}
	return nil, newDamage(src.Name(), store.ManifestName, 0, "it can't be used", err)
}

// ShardID reads the beginning of a shard and returns the id of the checkpoint that it belongs to.
func ShardID(shard io.ReaderAt) (id [16]byte, err error) {
	b := make([]byte, headerSize)
	if _, err := shard.ReadAt(b, 0); err != nil {
		return id, fmt.Errorf("cannot read the beginning of a shard: %w", err)
	}
	h, err := decodeHeader(b)
	return h.id, err
}

// ParseID reads an id as manifests have it: 32 hex digits.
func ParseID(s string) ([16]byte, error) { return decodeID(s) }

// ShardHeader is the length of what begins a shard, in bytes; blocks follow it.
const ShardHeader = headerSize

// IndexOffset reads the end of a shard and returns where its index begins, which is where its blocks end.
func IndexOffset(shard *os.File) (int64, error) {
	st, err := shard.Stat()
	if err != nil {
		return 0, err
	}
	end := make([]byte, footerSize)
	if _, err := shard.ReadAt(end, max(st.Size()-footerSize, 0)); err != nil {
		return 0, fmt.Errorf("cannot read the end of a shard: %w", err)
	}
	f, err := decodeFooter(end, st.Size())
	return int64(f.indexOffset), err
}
