// Package wire turns what the library takes and gives into the messages of the API, and back. The daemon and the jobs share it, so
// that a dump means the same in both.
//
// Nothing here keeps state: everything may be called from several goroutines at once.
package wire

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog"
	"stasis/internal/codec"
	"stasis/internal/config"
	"stasis/internal/image"
)

// DumpOptions are the options of a dump: as the settings say, where they say nothing as configured. The caller sets what is dumped,
// where to, and what becomes of it. Errors wrap stasis.ErrInput.
func DumpOptions(s *v1.DumpSettings, c *config.Config) (stasis.DumpOptions, error) {
	o := stasis.DumpOptions{
		Streams: c.Checkpoint.Stream, Compression: c.Checkpoint.Compression, Level: c.Checkpoint.Level,
		Nice: c.Checkpoint.Nice, Bandwidth: c.Checkpoint.Bandwidth,
	}
	if s == nil {
		return o, nil
	}
	if s.Streams != nil {
		o.Streams = int(s.GetStreams())
	}
	if s.GetCompression() != "" {
		o.Compression, o.Level = s.GetCompression(), 0 // levels mean something else for each codec
	}
	if s.GetLevel() != 0 {
		o.Level = int(s.GetLevel())
	}
	if s.Nice != nil {
		o.Nice = int(s.GetNice())
	}
	if s.Bandwidth != nil {
		o.Bandwidth = s.GetBandwidth()
	}
	if s.GetFinalBuffer() < 0 || s.GetFinalBuffer() > math.MaxInt64/2 {
		return o, fmt.Errorf("%w: final_buffer is %d bytes: it is a positive number, or 0 for the default", stasis.ErrInput, s.GetFinalBuffer())
	}
	if s.GetMaxPause() != nil && (!s.GetMaxPause().IsValid() || s.GetMaxPause().AsDuration() < 0) {
		return o, fmt.Errorf("%w: max_pause is no positive time", stasis.ErrInput)
	}
	engine, known := map[v1.Engine]stasis.Engine{
		v1.Engine_ENGINE_UNSPECIFIED: stasis.EngineAuto, v1.Engine_ENGINE_BLIND: stasis.EngineBlind,
		v1.Engine_ENGINE_LAZY_PAGES: stasis.EngineLazyPages, v1.Engine_ENGINE_CRIU: stasis.EngineCRIU,
	}[s.GetEngine()]
	if !known {
		return o, fmt.Errorf("%w: engine %d is not known here: is the client newer than the daemon?", stasis.ErrInput, s.GetEngine())
	}
	o.Engine, o.CRIU = engine, CRIUOptions(s.GetCriu())
	o.MaxRounds, o.MaxPause, o.FinalBuffer = int(s.GetMaxRounds()), s.GetMaxPause().AsDuration(), int(s.GetFinalBuffer())
	o.Track, o.MaxChain, o.AutoDedup = s.GetTrackMemory(), int(s.GetMaxChain()), s.GetAutoDedup()
	for name, n := range map[string]int{"streams": o.Streams, "max_rounds": o.MaxRounds, "max_chain": o.MaxChain, "level": o.Level} {
		if n < 0 {
			return o, fmt.Errorf("%w: %s is %d: it is a positive number, or 0 for the default", stasis.ErrInput, name, n)
		}
	}
	if o.Streams > image.MaxShards {
		return o, fmt.Errorf("%w: streams is %d: it is a number from 1 to %d, or 0 for one for each CPU", stasis.ErrInput, o.Streams, image.MaxShards)
	}
	if o.Nice < 0 || o.Nice > 19 {
		return o, fmt.Errorf("%w: nice is %d: it is a number from 0 to 19", stasis.ErrInput, o.Nice)
	}
	if o.Bandwidth < 0 {
		return o, fmt.Errorf("%w: bandwidth is %d: it is a number of bytes per second, or 0 for no limit", stasis.ErrInput, o.Bandwidth)
	}
	if _, err := codec.New(cmp.Or(o.Compression, stasis.DefaultCompression), o.Level); err != nil {
		return o, fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	if err := o.CRIU.Validate(); err != nil {
		return o, fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	return o, nil
}

// CRIUOptions are options of CRIU as the API has them.
func CRIUOptions(o *v1.CRIUOptions) stasis.CRIUOptions {
	return stasis.CRIUOptions{
		ShellJob: o.GetShellJob(), TCPEstablished: o.GetTcpEstablished(), TCPClose: o.GetTcpClose(), SkipInFlight: o.GetSkipInFlight(),
		ExtUnixSk: o.GetExtUnixSk(), FileLocks: o.GetFileLocks(), LinkRemap: o.GetLinkRemap(), GhostLimit: o.GetGhostLimit(),
		External: o.GetExternal(), Root: o.GetRoot(), JoinNS: o.GetJoinNs(), ManageCgroups: o.GetManageCgroups(), Timeout: o.GetTimeout(),
		CPUCap: o.GetCpuCap(), FileValidation: o.GetFileValidation(), NetworkLock: o.GetNetworkLock(), LogLevel: int(o.GetLogLevel()),
		Raw: o.GetRaw(),
	}
}

// Sizes of a page of a list.
const (
	usualPage   = 100
	largestPage = 1000
)

// PageSize is how many entries a page of a list has at most, where a call asks for so many; 0: the usual number.
func PageSize(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, fmt.Errorf("%w: page_size %d: it is a positive number, or 0 for %d", stasis.ErrInput, asked, usualPage)
	case asked == 0:
		return usualPage, nil
	}
	return min(int(asked), largestPage), nil
}

// After is what becomes of a tree; otherwise is meant where nothing is said.
func After(a v1.After, otherwise stasis.After) (stasis.After, error) {
	switch a {
	case v1.After_AFTER_UNSPECIFIED:
		return otherwise, nil
	case v1.After_AFTER_KILL:
		return stasis.AfterKill, nil
	case v1.After_AFTER_RUN:
		return stasis.AfterRun, nil
	case v1.After_AFTER_STOP:
		return stasis.AfterStop, nil
	}
	return "", fmt.Errorf("%w: after %d is not known here: is the client newer than the daemon?", stasis.ErrInput, a)
}

// AfterMessage is what became of a tree.
func AfterMessage(a stasis.After) v1.After {
	return map[stasis.After]v1.After{
		stasis.AfterKill: v1.After_AFTER_KILL, stasis.AfterRun: v1.After_AFTER_RUN, stasis.AfterStop: v1.After_AFTER_STOP,
	}[a]
}

// Progress is how far a dump or restore is.
func Progress(p stasis.Progress) *v1.Progress {
	return &v1.Progress{Step: string(p.Step), Round: int32(p.Round), DoneBytes: p.Done, TotalBytes: p.Total} //nolint:gosec // rounds are few
}

// Checkpoint describes a checkpoint in short. The length of its chain is known from a list only (see ChainLengths).
func Checkpoint(e *catalog.Entry) *v1.Checkpoint {
	m := e.Manifest
	c := &v1.Checkpoint{
		Id: m.ID, Name: m.Name, Dir: e.Dir, Parent: m.Parent, Kind: kindOf(m), Created: timestamppb.New(m.Created), Engine: m.Engine,
		RootPid: int32(m.RootPID), Processes: int32(e.Count), Compression: m.Codec, Streams: int32(len(m.Shards)),
		Figures: figures(&m.Figures), OwnerUid: e.Owner, Job: e.Job, Stasis: m.Stasis, Bytes: e.Bytes,
	}
	for _, p := range m.Processes {
		if p.PID == m.RootPID {
			c.Command = p.Comm
		}
	}
	return c
}

func kindOf(m *image.Manifest) v1.CheckpointKind {
	switch m.Kind {
	case image.KindFull:
		return v1.CheckpointKind_CHECKPOINT_KIND_FULL
	case image.KindPreDump:
		return v1.CheckpointKind_CHECKPOINT_KIND_PRE_DUMP
	}
	return v1.CheckpointKind_CHECKPOINT_KIND_UNSPECIFIED
}

func figures(f *image.Figures) *v1.Figures {
	g := &v1.Figures{
		Pause: micros(f.PauseUS), Took: micros(f.DumpUS), BytesMemory: f.BytesMemory, BytesFiles: f.BytesFiles, BytesRaw: f.BytesRaw,
		BytesStored: f.BytesStored, BytesSuperseded: f.BytesSuperseded, ZeroPages: f.ZeroPages, BytesReferenced: f.BytesReferenced,
	}
	for _, r := range f.Rounds {
		g.Rounds = append(g.Rounds, &v1.Round{Pages: r.Pages, Bytes: r.Bytes, Took: micros(r.US)})
	}
	return g
}

func micros(n int64) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Microsecond) }

// EntryOf is what a catalog would say of a dump's result, where no catalog knows it.
func EntryOf(r *stasis.DumpResult, owner uint32) *catalog.Entry {
	e := &catalog.Entry{Dir: r.Dir, Owner: owner, Manifest: r.Manifest, Count: len(r.Manifest.Processes)}
	for _, s := range r.Manifest.Shards {
		e.Bytes += s.Size
	}
	return e
}

// DumpResult is the last message of a dump's stream.
func DumpResult(r *stasis.DumpResult, e *catalog.Entry, took time.Duration) *v1.DumpResult {
	return &v1.DumpResult{Checkpoint: Checkpoint(e), After: AfterMessage(r.After), Took: durationpb.New(took), Notes: r.Notes}
}

// RestoreResult is the last message of a restore's stream.
func RestoreResult(r *stasis.RestoreResult, e *catalog.Entry) *v1.RestoreResult {
	m := &v1.RestoreResult{
		Pid: int32(r.PID), Checkpoint: Checkpoint(e), BytesMemory: r.BytesMemory, Took: durationpb.New(r.Took),
		ToResume: durationpb.New(r.ToResume), Warnings: r.Warnings,
	}
	for _, pid := range r.PIDs {
		m.Pids = append(m.Pids, int32(pid))
	}
	return m
}
