package image

import (
	"encoding/binary"
	"testing"

	"github.com/zeebo/xxh3"
)

func FuzzFooter(f *testing.F) {
	f.Add(footer{1, 64, 10, 10, 5, 6}.encode(), int64(64+10+64))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) == ShardFooter { // let some of them through the checksum
			binary.LittleEndian.PutUint64(b[56:], xxh3.Hash(b[:56]))
		}
		x, err := decodeFooter(b, size)
		if err == nil && (x.indexOffset < ShardHeader || int64(x.indexOffset+x.indexStored) != size-ShardFooter) {
			t.Fatalf("%+v passed for a shard of %d bytes", x, size)
		}
		_, _ = decodeHeader(b)
	})
}
