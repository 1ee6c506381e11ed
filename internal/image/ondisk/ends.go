package ondisk

import (
	"fmt"
	"io"
	"os"

	"stasis/internal/image"
)

// ShardID reads the beginning of a shard and returns the id of the checkpoint that it belongs to.
func ShardID(shard io.ReaderAt) (id [16]byte, err error) {
	b := make([]byte, image.ShardHeader)
	if _, err := shard.ReadAt(b, 0); err != nil {
		return id, fmt.Errorf("cannot read the beginning of a shard: %w", err)
	}
	h, err := DecodeHeader(b)
	return h.ID, err
}

// IndexOffset reads the end of a shard and returns where its index begins, which is where its blocks end.
func IndexOffset(shard *os.File) (int64, error) {
	st, err := shard.Stat()
	if err != nil {
		return 0, err
	}
	end := make([]byte, image.ShardFooter)
	if _, err := shard.ReadAt(end, max(st.Size()-image.ShardFooter, 0)); err != nil {
		return 0, fmt.Errorf("cannot read the end of a shard: %w", err)
	}
	f, err := DecodeFooter(end, st.Size())
	return int64(f.IndexOffset), err
}
