package daemon

import (
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/catalog/catalogtest"
)

// BenchmarkList calls List with ten thousand checkpoints known, from eight callers at once. What has to be seen is a thousand calls a
// second, in milliseconds each.
func BenchmarkList(b *testing.B) {
	const many = 10_000
	d := serve(b, func(o *Options) {
		fake(nil)(o)
		o.Log = slog.New(slog.DiscardHandler)
		catalogtest.Many(b, o.Config.Checkpoint.Dir, many)
	})
	begun := time.Now()
	if n := len(d.engine.Catalog.List()); n != many {
		b.Fatalf("%d checkpoints", n)
	}
	b.Logf("the first look took %v", time.Since(begun))
	client := stasisv1connect.NewCheckpointServiceClient(d.httpAs(b, 0), baseURL)
	var mu sync.Mutex
	var took []time.Duration
	b.SetParallelism(4)
	spent := cpuTime(b)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			at := time.Now()
			list, err := client.List(b.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
			if err != nil || list.Msg.GetTotal() != many || len(list.Msg.GetCheckpoints()) != 100 {
				b.Errorf("%v, %v", list, err)
				return
			}
			mu.Lock()
			took = append(took, time.Since(at))
			mu.Unlock()
		}
	})
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/p99")
	b.ReportMetric(float64((cpuTime(b)-spent).Microseconds())/1000/float64(b.N), "cpu-ms/call")
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	b.ReportMetric(float64(memory.HeapAlloc)/(1<<20), "heap-MiB")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// cpuTime is what this process, the daemon and its callers, has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
