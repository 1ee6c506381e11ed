package image

import (
	"fmt"
	"io"
	"os"
)

// ShardID reads the beginning of a shard and returns the id of the checkpoint that it belongs to.
func ShardID(shard io.ReaderAt) (id [16]byte, err error) {
	b := make([]byte, ShardHeader)
	if _, err := shard.ReadAt(b, 0); err != nil {
		return id, fmt.Errorf("cannot read the beginning of a shard: %w", err)
	}
	h, err := decodeHeader(b)
	return h.id, err
}

// IndexOffset reads the end of a shard and returns where its index begins, which is where its blocks end.
func IndexOffset(shard *os.File) (int64, error) {
	st, err := shard.Stat()
	if err != nil {
		return 0, err
	}
	end := make([]byte, ShardFooter)
	if _, err := shard.ReadAt(end, max(st.Size()-ShardFooter, 0)); err != nil {
		return 0, fmt.Errorf("cannot read the end of a shard: %w", err)
	}
	f, err := decodeFooter(end, st.Size())
	return int64(f.indexOffset), err
}
