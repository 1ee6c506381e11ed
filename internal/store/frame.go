package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

// A checkpoint in one stream is a sequence of frames. All numbers are little-endian.
//
//	 0       4    5     8         12       16         24         32
//	+-------+----+-----+---------+--------+----------+----------+----------
//	| magic |type|  0  | file    | length | sequence | checksum | data …
//	+-------+----+-----+---------+--------+----------+----------+----------
//
// The checksum is XXH3-64 of the first 24 bytes followed by the XXH3-64 of the data. The sequence numbers count from 0, so that
// no frame can be lost, doubled or moved. Frames of several files may be mixed. The order is: start, then begin · data… · finish
// of each file, then manifest, then end. Nothing is published before end was seen.
const (
	frameMagic   = 0x4d525453 // "STRM"
	frameHeader  = 32
	frameVersion = 1
	frameData    = 256 << 10 // what the writer puts into a frame
	frameMax     = 1 << 20   // what the reader takes, the manifest apart
	maxFiles     = 4096
)

type frameType uint8

const (
	frameStart    frameType = 1 // data: version u32
	frameBegin    frameType = 2 // data: the file's name; files are numbered from 0 in this order
	frameFile     frameType = 3 // data: the file's next bytes
	frameFinish   frameType = 4 // the file is complete
	frameManifest frameType = 5 // data: the manifest
	frameEnd      frameType = 6 // the checkpoint is complete
	frameAbort    frameType = 7 // the writer gave up
)

// frame is one that was read.
type frame struct {
	kind frameType
	file uint32
	data []byte // valid until the next is read
}

// sealFrame fills in the header, which is the first frameHeader bytes of f; data follows it.
func sealFrame(f []byte, kind frameType, file uint32, seq uint64) {
	head, data := f[:frameHeader], f[frameHeader:]
	clear(head)
	binary.LittleEndian.PutUint32(head, frameMagic)
	head[4] = byte(kind)
	binary.LittleEndian.PutUint32(head[8:], file)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(data)))
	binary.LittleEndian.PutUint64(head[16:], seq)
	binary.LittleEndian.PutUint64(head[24:], frameSum(head, data))
}

func frameSum(head, data []byte) uint64 {
	var covered [frameHeader]byte
	copy(covered[:24], head)
	binary.LittleEndian.PutUint64(covered[24:], xxh3.Hash(data))
	return xxh3.Hash(covered[:])
}

// frameReader reads frames and checks that each is whole and in its place.
type frameReader struct {
	r    io.Reader
	seq  uint64
	data bytes.Buffer
}

func (f *frameReader) next() (frame, error) {
	var head [frameHeader]byte
	n, err := io.ReadFull(f.r, head[:])
	switch {
	case f.seq == 0 && n > 0 && !couldBegin(head[:n]):
		return frame{}, f.bad(notAStream, nil)
	case n == 0 && f.seq == 0 && errors.Is(err, io.EOF):
		return frame{}, f.bad("nothing came", nil)
	case err != nil:
		return frame{}, f.bad("it ended before its end mark", err)
	}
	kind, length := frameType(head[4]), binary.LittleEndian.Uint32(head[12:])
	limit := uint32(frameMax)
	if kind == frameManifest {
		limit = MaxManifest
	}
	switch {
	case binary.LittleEndian.Uint32(head[:]) != frameMagic:
		return frame{}, f.bad(notAStream, nil)
	case binary.LittleEndian.Uint64(head[16:]) != f.seq:
		return frame{}, f.bad("a part of it is missing", nil)
	case length > limit:
		return frame{}, f.bad("it is damaged: a part is longer than any can be", nil)
	}
	// The buffer grows with what arrives, not with what the header promises.
	f.data.Reset()
	if _, err := io.CopyN(&f.data, f.r, int64(length)); err != nil {
		return frame{}, f.bad("it ended before its end mark", err)
	}
	if frameSum(head[:], f.data.Bytes()) != binary.LittleEndian.Uint64(head[24:]) {
		return frame{}, f.bad("it is damaged: a checksum does not match", nil)
	}
	f.seq++
	return frame{kind, binary.LittleEndian.Uint32(head[8:]), f.data.Bytes()}, nil
}

const notAStream = "it is not in the form that Stasis writes"

// StreamBegins says whether the first bytes of a file, four of them at least, are those of a stream that NewStream made.
func StreamBegins(head []byte) bool { return len(head) >= 4 && couldBegin(head) }

// couldBegin says whether a stream can begin with some bytes.
func couldBegin(head []byte) bool {
	magic := binary.LittleEndian.AppendUint32(nil, frameMagic)
	return bytes.HasPrefix(head, magic[:min(len(head), len(magic))])
}

// bad makes the error for a stream that can't be used, with the number of the frame where that showed.
func (f *frameReader) bad(why string, err error) error {
	const todo = "send the checkpoint again, and look at the sending side's message"
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s (part %d): %s", ErrStream, why, f.seq, todo)
	}
	return fmt.Errorf("%w: cannot read it (part %d): %w: %s", ErrStream, f.seq, err, todo)
}
