package service_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "stasis/api/stasis/v1"
)

// BenchmarkIdle looks at a daemon that nobody calls, second by second: it looks after 200 jobs that run, on a schedule that is not due, and knows
// 200 others with 10 000 checkpoints. What has to be seen is less than one per cent of a CPU and 64 MiB; a minute is -benchtime 60x.
func BenchmarkIdle(b *testing.B) {
	c, pid := manyServed(b)
	stop := context.WithoutCancel(b.Context())
	for i := range manyJobs {
		spec := &v1.JobSpec{
			Name: fmt.Sprintf("running-%03d", i), Command: []string{"sleep", "100000"}, Environment: []string{"PATH=/usr/bin:/bin"},
			Schedule: &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(time.Hour)}},
		}
		if _, err := c.Jobs.Run(b.Context(), connect.NewRequest(&v1.RunRequest{Spec: spec})); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			remove := &v1.RemoveJobRequest{Job: spec.GetName(), Force: true, Checkpoints: true}
			if _, err := c.Jobs.Remove(stop, connect.NewRequest(remove)); err != nil {
				b.Error(err)
			}
		})
	}
	<-time.After(12 * time.Second) // until what the calls have left behind is tidied up
	spent := cpuTime(b, pid)
	b.ResetTimer()
	for range b.N {
		<-time.After(time.Second)
	}
	b.StopTimer()
	b.ReportMetric(100*(cpuTime(b, pid)-spent).Seconds()/b.Elapsed().Seconds(), "%-of-a-cpu")
	b.ReportMetric(memoryOf(b, pid, "Rss:"), "rss-MiB")
	b.ReportMetric(memoryOf(b, pid, "Pss:"), "pss-MiB")
}

// memoryOf is a line of a process' smaps_rollup, in MiB.
func memoryOf(b *testing.B, pid int, name string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if fields := strings.Fields(string(line)); len(fields) == 3 && fields[0] == name {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatalf("no %s of process %d", name, pid)
	return 0
}
