package cli

import (
	"cmp"
	"runtime"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/codec"
	"stasis/internal/config"
	"stasis/internal/image"
)

// writeFlags say how a checkpoint is written.
type writeFlags struct {
	streams     int
	compression string
	level       int
}

// add gives a command the flags; each of the texts says what holds without one.
func (f *writeFlags) add(cmd *cobra.Command, streams, compression string) {
	flags := cmd.Flags()
	flags.IntVar(&f.streams, "stream", 0, "write `N` files in parallel (default: "+streams+")")
	flags.Var(oneOf{&f.compression, codec.Names()}, "compression", "`CODEC`: none, lz4, zstd, gzip or zlib (default: "+compression+")")
	flags.IntVar(&f.level, "level", 0, "`LEVEL` of the codec; 0 is its default")
	must(cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(codec.Names(), cobra.ShellCompDirectiveNoFileComp)))
}

// addConfigured is add for a command that otherwise writes as is configured.
func (f *writeFlags) addConfigured(cmd *cobra.Command) {
	f.add(cmd, "as configured, else one for each CPU", "as configured, else "+stasis.DefaultCompression)
}

// check refuses a number of streams that cannot be; without says what leaving the flag out means.
func (f *writeFlags) check(given func(flag string) bool, without string) error {
	if given("stream") && (f.streams < 1 || f.streams > image.MaxShards) {
		return badInput("--stream %d: it is a number from 1 to %d; leave it out for %s", f.streams, image.MaxShards, without)
	}
	return nil
}

// written is how a checkpoint is written, from the flags and the configuration.
type written struct {
	streams     int    // 0: one for each CPU
	compression string // "": stasis.DefaultCompression
	level       int
	codec       codec.Codec
}

func (w *written) shards() int { return cmp.Or(w.streams, min(runtime.NumCPU(), image.MaxShards)) }

// settle puts the flags before the configuration.
func (f *writeFlags) settle(given func(flag string) bool, configured *config.Checkpoint) (w written, err error) {
	if err := f.check(given, "one for each CPU"); err != nil {
		return w, err
	}
	w = written{streams: configured.Stream, compression: configured.Compression, level: configured.Level}
	if given("stream") {
		w.streams = f.streams
	}
	if given("compression") && f.compression != w.compression {
		w.compression, w.level = f.compression, 0 // a level that was configured is another codec's
	}
	if given("level") {
		w.level = f.level
	}
	if w.codec, err = codec.New(cmp.Or(w.compression, stasis.DefaultCompression), w.level); err != nil {
		return w, badInput("%w", err)
	}
	return w, nil
}
