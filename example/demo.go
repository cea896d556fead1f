package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// traffic is one kind of demo request. Its rate wanders between a quarter of
// perSecond and nearly twice as much.
type traffic struct {
	method, path string // {n} becomes a small number
	perSecond    float64
	body         string
}

func demoTraffic() []traffic {
	return []traffic{
		{"GET", "/novels/{n}", 30, ""},
		{"GET", "/site/", 12, ""},
		{"GET", "/site/blog/{n}", 9, ""},
		{"POST", "/writer/chapters", 7, "Chapter one."},
		{"POST", "/llm/complete", 5, "Tell me how the story ends, and why."},
		{"POST", "/novels", 3, ""},
		{"POST", "/writer/outlines", 2, ""},
		{"POST", "/users", 0.6, ""},
		{"POST", "/llm/complete?fail=timeout", 0.5, ""},
		{"GET", "/me", 0.5, ""},
		{"GET", "/unknown", 0.4, ""},
	}
}

// sendTraffic sends every kind of request to base until ctx ends: each once at
// once, then at rates that differ and wander.
func sendTraffic(ctx context.Context, base string) {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	var senders sync.WaitGroup
	defer senders.Wait()
	for i, kind := range demoTraffic() {
		senders.Go(func() {
			start := time.Now()
			for {
				send(ctx, client, base, kind)
				wave := 1 + 0.75*math.Sin(time.Since(start).Seconds()/float64(7+3*i)+float64(i))
				wait := rand.ExpFloat64() / (kind.perSecond * wave)
				select {
				case <-time.After(time.Duration(min(wait, 10) * float64(time.Second))):
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

func send(ctx context.Context, client *http.Client, base string, kind traffic) {
	path := strings.ReplaceAll(kind.path, "{n}", fmt.Sprint(1+rand.IntN(40)))
	r, err := http.NewRequestWithContext(ctx, kind.method, base+path, strings.NewReader(kind.body))
	if err != nil {
		return
	}
	// Some users write much, most of them little.
	r.Header.Set("X-User", fmt.Sprintf("writer-%d", int(math.Pow(200, rand.Float64()))))
	resp, err := client.Do(r)
	if err != nil {
		return // the server is on its way out
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}
