package image

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/store"
)

// The kinds of checkpoint.
const (
	KindFull    = "full"     // can be restored
	KindPreDump = "pre-dump" // memory only, the parent of a later one
)

// Manifest describes a checkpoint to people and programs. It is stored as manifest.json; docs/manifest.schema.json documents
// it. Times that end in US are microseconds, sizes that begin with Bytes are bytes.
type Manifest struct {
	Format    int               `json:"format"`            // the oldest format that has all that is in it, 1 or 2; set by Writer.Finish
	Stasis    string            `json:"stasis"`            // version of the Stasis that wrote it
	ID        string            `json:"id"`                // 32 hex digits; set by Writer.Finish
	Name      string            `json:"name,omitempty"`    // what the user called it
	Parent    string            `json:"parent,omitempty"`  // id of the checkpoint that this one builds on
	Depth     int               `json:"depth,omitempty"`   // number of ancestors that it builds on, through all parents
	Kind      string            `json:"kind"`              // KindFull or KindPreDump
	Created   time.Time         `json:"created"`           // when the process was frozen
	Engine    string            `json:"engine"`            // how memory was kept from CRIU: blind, lazy-pages, criu; import: CRIU dumped it
	Host      Host              `json:"host"`              // what a restore depends on
	RootPID   int               `json:"root_pid"`          // root of the process tree
	Processes []Process         `json:"processes"`         // the tree, parents before children
	Options   map[string]string `json:"options,omitempty"` // options of the dump that a restore needs to know
	Codec     string            `json:"codec"`             // what blocks are compressed with; set by Writer.Finish
	Shards    []Shard           `json:"shards"`            // set by Writer.Finish
	Origins   []Origin          `json:"origins,omitempty"` // ancestors that hold pages of this checkpoint; index entries count them from 1
	Figures   Figures           `json:"figures"`           // how the dump went
	Checksum  string            `json:"checksum"`          // XXH3-64 of the file with these 16 digits as zeros; must be the last member
}

// Host is what a restore has to find again.
type Host struct {
	Hostname    string   `json:"hostname"`
	Kernel      string   `json:"kernel"` // uname -r
	Arch        string   `json:"arch"`   // uname -m
	CPUModel    string   `json:"cpu_model,omitempty"`
	CPUFeatures []string `json:"cpu_features,omitempty"` // flags of /proc/cpuinfo
	CRIUVersion string   `json:"criu_version"`
	PageSize    int      `json:"page_size"` // set by Writer.Finish
}

// Process is a summary of one process. CRIU's images have everything.
type Process struct {
	PID      int                `json:"pid"`
	PPID     int                `json:"ppid"`
	Comm     string             `json:"comm"`
	Exe      string             `json:"exe,omitempty"`
	Cmdline  []string           `json:"cmdline,omitempty"`
	State    string             `json:"state,omitempty"` // as in /proc/PID/stat: R, S, T, Z …
	Threads  []int              `json:"threads,omitempty"`
	Mappings map[string]Mapping `json:"mappings,omitempty"` // by kind: heap, anonymous, stack, file, shared …
	Files    []OpenFile         `json:"files,omitempty"`
	Sockets  []Socket           `json:"sockets,omitempty"`

	// OwnNamespaces are the kinds of namespaces (pid, net, mnt, …) that it did not share with Stasis.
	OwnNamespaces []string `json:"own_namespaces,omitempty"`
	// Needs are the files that it reads, but does not write, by mappings and descriptors. A restore finds them unchanged.
	// Each is listed once, with the first process of the tree that uses it.
	Needs []NeededFile `json:"needs,omitempty"`
	// Settings are what CRIU's images lack of the process. Left out for zombies, and by versions that did not know them: nothing is put back then.
	Settings *Settings `json:"settings,omitempty"`
}

// Settings are what CRIU does not keep of a process. What is as in a process that never changed it is left out.
type Settings struct {
	CoredumpFilter *uint32          `json:"coredump_filter,omitempty"` // bits of core(5); left out: 0x33
	AutogroupNice  int              `json:"autogroup_nice,omitempty"`  // of its session, as in sched(7)
	Semaphores     []int            `json:"semaphores,omitempty"`      // descriptors of eventfds that are EFD_SEMAPHORE
	Threads        []ThreadSettings `json:"threads,omitempty"`         // those with anything to note
}

// ThreadSettings are what CRIU does not keep of a thread.
type ThreadSettings struct {
	TID          int       `json:"tid"`                      // as the process sees it
	CPUs         string    `json:"cpus,omitempty"`           // it is bound to, as taskset(1) lists them: "0-3,8"; left out: not bound
	TimerSlackNS uint64    `json:"timer_slack_ns,omitempty"` // nanoseconds; left out: 50000
	IOPriority   int       `json:"io_priority,omitempty"`    // as ioprio_set(2) has it; left out: by its nice value
	SliceNS      uint64    `json:"slice_ns,omitempty"`       // nanoseconds that it asked to run at a stretch; left out: what the kernel gives
	Deadline     *Deadline `json:"deadline,omitempty"`       // of policy SCHED_DEADLINE
	Personality  uint32    `json:"personality,omitempty"`    // as personality(2) has it
}

// Deadline are the parameters of policy SCHED_DEADLINE in nanoseconds, and flags as in sched_setattr(2).
type Deadline struct {
	RuntimeNS  uint64 `json:"runtime_ns"`
	DeadlineNS uint64 `json:"deadline_ns"`
	PeriodNS   uint64 `json:"period_ns"`
	Flags      uint64 `json:"flags,omitempty"`
}

// Mapping sums up the mappings of one kind.
type Mapping struct {
	Count int    `json:"count"`
	Bytes uint64 `json:"bytes"`
}

// OpenFile is a descriptor of a process.
type OpenFile struct {
	FD   int    `json:"fd"`
	Path string `json:"path"` // or a description such as pipe:[123]
}

// NeededFile is a regular file as it was when the dump began.
type NeededFile struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`     // bytes
	MtimeNS int64  `json:"mtime_ns"` // last modification, nanoseconds since 1970
}

// Socket is a socket of a process.
type Socket struct {
	FD       int    `json:"fd"`
	Protocol string `json:"protocol"` // tcp, tcp6, udp, unix …
	Local    string `json:"local,omitempty"`
	Remote   string `json:"remote,omitempty"`
	State    string `json:"state,omitempty"` // listen, established …
}

// Shard is one of the files that hold the blocks.
type Shard struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	Digest string `json:"digest"` // XXH3-64 of its index and footer, 16 hex digits; the index holds the checksum of each block
}

// Origin is an ancestor that holds pages of this checkpoint.
type Origin struct {
	ID   string `json:"id"`             // its id, 32 hex digits
	Path string `json:"path,omitempty"` // where it was, relative to this checkpoint where possible
}

// Figures say how a dump went.
type Figures struct {
	PauseUS         int64   `json:"pause_us"`         // how long the process stood still
	DumpUS          int64   `json:"dump_us"`          // from the start to the commit
	Rounds          []Round `json:"rounds,omitempty"` // copies of memory, the last one with the process frozen
	BytesMemory     int64   `json:"bytes_memory"`     // memory in the checkpoint; this and the following are set by Writer.Finish
	BytesFiles      int64   `json:"bytes_files"`      // CRIU's image files in the checkpoint
	BytesRaw        int64   `json:"bytes_raw"`        // given to the Writer, in all rounds
	BytesStored     int64   `json:"bytes_stored"`     // size of all shards
	BytesSuperseded int64   `json:"bytes_superseded"` // in the shards, of blocks that later rounds replaced altogether
	BytesReferenced int64   `json:"bytes_referenced"` // memory whose bytes are in the shards of ancestors, and not stored again
	BytesShared     int64   `json:"bytes_shared"`     // memory that is equal to other memory of this checkpoint, and not stored again
	BytesDelta      int64   `json:"bytes_delta"`      // memory that is stored in the checkpoint's own shards as differences from pages of ancestors
	BytesDeltaUsed  int64   `json:"bytes_delta_used"` // what these differences take in the shards
	ZeroPages       int64   `json:"zero_pages"`       // pages that take no space
}

// Round is one copy of the memory, or of what changed since the one before.
type Round struct {
	Pages int64 `json:"pages"`
	Bytes int64 `json:"bytes"`
	US    int64 `json:"us"`
}

const (
	checksumKey = `"checksum": "`
	noChecksum  = "0000000000000000"
)

// Encode makes the JSON text, with its checksum.
func (m *Manifest) Encode() ([]byte, error) {
	m.Checksum = noChecksum
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot encode the manifest: %w", err)
	}
	text = append(text, '\n')
	at, err := checksumAt(text)
	if err != nil {
		return nil, err
	}
	m.Checksum = HexSum(xxh3.Hash(text))
	copy(text[at:], m.Checksum)
	return text, nil
}

// checksumAt finds the 16 digits of the checksum, which is the last member.
func checksumAt(text []byte) (int, error) {
	at := bytes.LastIndex(text, []byte(checksumKey))
	if at < 0 || at+len(checksumKey)+len(noChecksum) > len(text) {
		return 0, errors.New("it has no checksum")
	}
	return at + len(checksumKey), nil
}

// HexSum is a checksum as the manifest has it.
func HexSum(sum uint64) string { return fmt.Sprintf("%016x", sum) }

// DecodeManifest reads a manifest. A newer format is a *VersionError, whatever else is in it; everything else that is not as
// it was written is damage, whose reason it returns.
func DecodeManifest(text []byte) (*Manifest, error) {
	m := new(Manifest)
	err := json.Unmarshal(text, m)
	if err != nil || m.Format > FormatVersion {
		var version struct { // all that is sure of a newer format
			Format int    `json:"format"`
			Stasis string `json:"stasis"`
		}
		if json.Unmarshal(text, &version) == nil && version.Format > FormatVersion {
			return nil, &VersionError{Format: version.Format, Stasis: version.Stasis}
		}
		return nil, fmt.Errorf("it is not JSON as Stasis writes it: %w", err)
	}
	at, err := checksumAt(text)
	if err != nil {
		return nil, err
	}
	blank := bytes.Clone(text)
	copy(blank[at:], noChecksum)
	if want, got := HexSum(xxh3.Hash(blank)), string(text[at:at+len(noChecksum)]); want != got {
		return nil, fmt.Errorf("its checksum is %s and should be %s: it was changed after it was written", want, got)
	}
	return m, m.check()
}

// check sees that what readers rely on is there and within bounds.
func (m *Manifest) check() error {
	if m.Format < PlainVersion || m.Format > FormatVersion {
		return fmt.Errorf("its format is %d, which never was", m.Format)
	}
	if _, err := ParseID(m.ID); err != nil {
		return err
	}
	if m.Kind != KindFull && m.Kind != KindPreDump {
		return fmt.Errorf("its kind is %q, neither %s nor %s", m.Kind, KindFull, KindPreDump)
	}
	if m.Host.PageSize != PageSize {
		return fmt.Errorf("its page size is %d, and this Stasis works with %d", m.Host.PageSize, PageSize)
	}
	if _, err := codec.New(m.Codec, 0); err != nil {
		return err
	}
	if len(m.Shards) < 1 || len(m.Shards) > MaxShards {
		return fmt.Errorf("it lists %d shards, and there are 1 to %d", len(m.Shards), MaxShards)
	}
	for i, s := range m.Shards {
		digest, err := hex.DecodeString(s.Digest)
		if s.Name != ShardName(i) || s.Size < ShardHeader+ShardFooter || err != nil || len(digest) != 8 {
			return fmt.Errorf("its entry for shard %d is not as Stasis writes it", i)
		}
	}
	for i, o := range m.Origins {
		if _, err := ParseID(o.ID); err != nil {
			return fmt.Errorf("origin %d: %w", i+1, err)
		}
	}
	return nil
}

// ParseID reads an id as manifests have it: 32 hex digits.
func ParseID(s string) (id [16]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is no checkpoint id: it must be %d hex digits", s, 2*len(id))
	}
	return [16]byte(b), nil
}

// ReadManifest reads and checks a checkpoint's manifest alone, which is enough to list it. An error is a *DamageError or a *VersionError.
func ReadManifest(src store.Source) (*Manifest, error) {
	text, err := src.Manifest()
	if err != nil {
		return nil, err
	}
	m, err := DecodeManifest(text)
	if err == nil {
		return m, nil
	}
	var version *VersionError
	if errors.As(err, &version) {
		version.Checkpoint = src.Name()
		return nil, version
	}
	return nil, NewDamage(src.Name(), store.ManifestName, 0, "it can't be used", err)
}
