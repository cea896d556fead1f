package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

//go:embed wrk.lua
var script []byte

// A load sends a server as many requests as it can for a while, over so many
// connections that are closed in the end.
type load func(ctx context.Context, url string) (answers, error)

// answers is what a load got.
type answers struct {
	Requests     int64 // that were answered; those in flight at the end are not
	Microseconds int64 // that it took
	P50, P99     int64 // latency, in microseconds
	Errors       int64 // connections that broke, answers that took 10 s or have a status of 400 and up
}

var errNoWrk = errors.New("wrk is not installed: apt-get install wrk")

// newWrk returns a load by wrk, whose script is put into dir.
func newWrk(dir string, connections, users int, d time.Duration) (load, error) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		return nil, errNoWrk
	}
	file := filepath.Join(dir, "wrk.lua")
	if err := os.WriteFile(file, script, 0o600); err != nil {
		return nil, err
	}
	return func(ctx context.Context, url string) (answers, error) {
		cmd := exec.CommandContext(ctx, wrk, "-t1", fmt.Sprint("-c", connections), fmt.Sprintf("-d%.0fs", d.Seconds()),
			"--timeout", "10s", "-s", file, url, "--", strconv.Itoa(routeCount), strconv.Itoa(users))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return answers{}, fmt.Errorf("wrk: %w\n%s", err, out)
		}
		return parseWrk(out)
	}, nil
}

// parseWrk reads what the script wrote in the end.
func parseWrk(out []byte) (a answers, err error) {
	out = bytes.TrimSpace(out)
	last := out[bytes.LastIndexByte(out, '\n')+1:]
	if err := json.Unmarshal(last, &a); err != nil {
		return a, fmt.Errorf("wrk: %w in its last line\n%s", err, out)
	}
	if a.Errors > 0 || a.Requests == 0 || a.Microseconds == 0 {
		return a, fmt.Errorf("wrk: %d requests, %d errors\n%s", a.Requests, a.Errors, out)
	}
	return a, nil
}
