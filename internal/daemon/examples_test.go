package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"stasis/internal/require"
)

var example = regexp.MustCompile("(?ms)^```sh (curl|grpcurl)( fails)?\n(.*?)^```$")

// TestExamples runs what docs/api-examples.md shows, in its order, against a daemon.
func TestExamples(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	require.Program(t, "curl")
	require.Program(t, "python3")
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "api-examples.md"))
	if err != nil {
		t.Fatal(err)
	}
	b := serve(t, nil)
	env := append(os.Environ(), "SOCKET="+b.config.Daemon.Socket, "PID="+strconv.Itoa(sleeper(t, 0)))
	all := example.FindAllStringSubmatch(string(text), -1)
	// What each of them must print, in their order.
	says := []string{
		`"api":`, `{}`, `"result": `, `"not_found"`, `"format": 1`, `"removed":`, "stasis_dumps_total{kind=\"dump\",result=\"ok\"} 1",
		"stasis.v1.CheckpointService", "message DumpRequest", `"name": "by-grpc"`, "SERVING",
	}
	if len(all) != len(says) {
		t.Fatalf("%d examples, and this test knows %d", len(all), len(says))
	}
	for i, one := range all {
		kind, fails, script := one[1], one[2] != "", one[3]
		t.Run(kind+"-"+strconv.Itoa(i), func(t *testing.T) {
			if kind == "grpcurl" {
				env = append(env, "PATH="+filepath.Dir(grpcurl(t))+":"+os.Getenv("PATH"))
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			if (err != nil) != fails || !strings.Contains(string(out), says[i]) {
				t.Errorf("%s\n%s\n%v: it should say %q", script, out, err, says[i])
			}
		})
	}
}

// grpcurl is what scripts/install-deps has built from tools/, or one that is installed.
func grpcurl(t *testing.T) string {
	t.Helper()
	if path, err := filepath.Abs(filepath.Join("..", "..", ".cache", "bin", "grpcurl")); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return require.Program(t, "grpcurl")
}
