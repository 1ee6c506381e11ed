package store

// NamedFiles makes t do as on a file system that has no unnamed files.
func (t *FolderTarget) NamedFiles() { t.named = true }

// Buffered makes t do as on a file system that has no direct I/O.
func (t *FolderTarget) Buffered() { t.buffered = true }

// Frame makes one frame of a stream, with a right checksum.
func Frame(kind byte, file uint32, seq uint64, data []byte) []byte {
	f := append(make([]byte, frameHeader), data...)
	sealFrame(f, frameType(kind), file, seq)
	return f
}
