package ondisk

import (
	"encoding/binary"
	"testing"

	"github.com/zeebo/xxh3"

	"stasis/internal/image"
)

func FuzzFooter(f *testing.F) {
	f.Add(Footer{1, 64, 10, 10, 5, 6}.Encode(), int64(64+10+64))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) == image.ShardFooter { // let some of them through the checksum
			binary.LittleEndian.PutUint64(b[56:], xxh3.Hash(b[:56]))
		}
		x, err := DecodeFooter(b, size)
		if err == nil && (x.IndexOffset < image.ShardHeader || int64(x.IndexOffset+x.IndexStored) != size-image.ShardFooter) {
			t.Fatalf("%+v passed for a shard of %d bytes", x, size)
		}
		_, _ = DecodeHeader(b)
	})
}
