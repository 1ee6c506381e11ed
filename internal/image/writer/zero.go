package writer

import (
	"bytes"
	"encoding/binary"

	"stasis/internal/image"
)

var zeroPage [image.PageSize]byte

// zeroPages returns a bit for each page of data, which has at most MaxPages, that has no byte but zero.
//
// Nearly every page that is not zero shows it in one of a few words, so that memory without zero pages is hardly read here.
func zeroPages(data []byte) (zero uint64) {
	for i := 0; i*image.PageSize < len(data); i++ {
		page := data[i*image.PageSize : (i+1)*image.PageSize]
		probe := binary.LittleEndian.Uint64(page) | binary.LittleEndian.Uint64(page[image.PageSize/2:]) |
			binary.LittleEndian.Uint64(page[image.PageSize-8:])
		if probe == 0 && bytes.Equal(page, zeroPage[:]) {
			zero |= 1 << i
		}
	}
	return zero
}
