package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"stasis/bench/rig"
)

// warehouse is the running program.
type warehouse struct {
	pid    int
	client http.Client
}

// status is what the program says about itself.
type status struct {
	Moves      int64 `json:"moves"`
	Items      int64 `json:"items"`
	Bytes      int64 `json:"bytes"`
	Standstill int64 `json:"standstill_us"` // the longest since the last status
}

// openWarehouse starts the program in a session of its own, as a service would
// be, and waits until it answers.
func openWarehouse(ctx context.Context, program, dir string) (*warehouse, error) {
	socket := filepath.Join(dir, "warehouse.sock")
	log, err := os.Create(filepath.Join(dir, "warehouse.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, "-dir", dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &warehouse{pid: cmd.Process.Pid}
	w.client.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = rig.Wait(ready, "the warehouse", func() (bool, error) {
		_, err := w.status(ready)
		return err == nil, nil
	})
	if err != nil {
		return nil, errors.Join(err, rig.End(w.pid))
	}
	return w, nil
}

func (w *warehouse) status(ctx context.Context) (status, error) { return w.get(ctx, "status") }

// verify makes the program check all of its data.
func (w *warehouse) verify(ctx context.Context) (status, error) { return w.get(ctx, "verify") }

func (w *warehouse) get(ctx context.Context, what string) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://warehouse/"+what, http.NoBody)
	if err != nil {
		return s, err
	}
	response, err := w.client.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(response.Body, 1000))
		return s, errors.Join(fmt.Errorf("the warehouse says: %s", strings.TrimSpace(string(text))), err)
	}
	return s, json.NewDecoder(response.Body).Decode(&s)
}
