package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// traffic is one kind of demo request, and what one of them counts: history.go has
// a month of it.
type traffic struct {
	method, path string        // {n} becomes a number up to demoNovels, {model} a model
	body         string        // of the request
	perSecond    float64       // when busy is 1
	takes        time.Duration // half of them less
	route, area  string        // as the middleware names them
	status       int           // its class
	counts       string        // by the service; "": nothing, or calls of models
}

const (
	demoNovels    = 40 // that there are when it starts
	promptWords   = 320
	meanSentences = (demoNovels + 1) / 2.0 // of an answer

	// spread is how far times lie apart: the standard deviation of their logarithm.
	spread = 0.5

	takesHeader = "Demo-Takes" // how long a request should take, see paced
)

func demoTraffic() []traffic {
	const ms = time.Millisecond
	prompt := strings.Repeat("Tell me how the story ends, and why. ", promptWords/8)
	return []traffic{
		{"GET", "/novels/{n}", "", 3, 4 * ms, "GET /novels/{id}", "novels", 2, ""},
		{"GET", "/site/", "", 1.2, 2 * ms, "GET /site/{path...}", "", 2, ""},
		{"GET", "/site/blog/{n}", "", 0.9, 6 * ms, "GET /site/{path...}", "blog", 2, ""},
		{"POST", "/writer/chapters", "Chapter one.", 0.7, 30 * ms, "POST /writer/chapters", "writer", 2, "feature.chapter.written"},
		{"POST", "/llm/complete?model={model}&sentences={n}", prompt, 0.5, 2500 * ms, "POST /llm/complete", "llm", 2, ""},
		{"POST", "/llm/complete?model={model}&fail=timeout", prompt, 0.01, 8000 * ms, "POST /llm/complete", "llm", 5, ""},
		{"POST", "/writer/outlines", "", 0.2, 120 * ms, "POST /writer/outlines", "writer", 2, "feature.outline.generated"},
		{"POST", "/novels", "", 0.15, 20 * ms, "POST /novels", "novels", 2, "feature.novel.started"},
		{"GET", "/me", "", 0.1, 8 * ms, "GET /me", "me", 2, ""},
		{"GET", "/unknown", "", 0.04, 1 * ms, "(unmatched)", "", 4, ""},
		{"POST", "/users", "", 0.002, 60 * ms, "POST /users", "users", 2, "user.registrations"},
	}
}

// anonymous tells whether nobody is known to send a kind.
func (k traffic) anonymous() bool { return k.area == "" || k.area == "blog" || k.area == "users" }

// busy is how much is going on at a time of the day, and of the week: quiet nights,
// a hump before noon and one in the evening.
func busy(t time.Time) float64 {
	t = t.UTC()
	hour := float64(t.Hour()) + float64(t.Minute())/60
	hump := func(at, width float64) float64 {
		from := math.Abs(hour - at)
		from = min(from, 24-from) / width
		return math.Exp(-from * from)
	}
	level := 0.35 + 0.9*hump(10.5, 2.8) + 1.3*hump(20, 2.6)
	if weekend(t) {
		level *= 0.65
	}
	return level
}

func weekend(t time.Time) bool { return t.Weekday() == time.Saturday || t.Weekday() == time.Sunday }

// growth is how much of today's traffic there was so many days ago.
func growth(daysAgo float64) float64 { return 1 - 0.35*daysAgo/historyDays }

// writersAt are those who are at work in the hour of t, the most active first. Some
// come every day, most of them seldom.
func writersAt(t time.Time, daysAgo float64) (ids []string) {
	t = t.UTC()
	come, stay := 36.0, 0.4*busy(t)
	if weekend(t) {
		come *= 0.7
	}
	day := rand.New(rand.NewPCG(1, uint64(t.Truncate(24*time.Hour).Unix())))
	hour := rand.New(rand.NewPCG(2, uint64(t.Truncate(time.Hour).Unix())))
	for n := 1; n <= int(900*growth(daysAgo)); n++ {
		comes, stays := day.Float64() < come/float64(40+n), hour.Float64() < stay
		if comes && stays {
			ids = append(ids, fmt.Sprintf("writer-%d", n))
		}
	}
	return ids
}

// modelsUpTo are the shares of calls that the models have, each with those before it:
// the second came in the middle of the month, and is taking over from the first.
func modelsUpTo(daysAgo float64) []float64 {
	past := daysAgo / historyDays
	shares := []float64{2 + 4*past, max(0, 4-8*past), 3, 1.5 - past/2} // in the order of models
	var sum float64
	for i := range shares {
		sum += shares[i]
		shares[i] = sum
	}
	for i := range shares {
		shares[i] /= sum
	}
	return shares
}

// userNames names those of the demo's users who have told their name.
func userNames(_ context.Context, ids []string) (map[string]string, error) {
	given := strings.Fields("Ada Bruno Clara Dario Edda Felix Greta Hugo Ines Jonas Karla Lino Mira Nils Olga Piet")
	family := strings.Fields("Ashgrove Birchall Candlewick Dovetail Everquill Foxley Goosefeather Hollowell Inkster Juniper Kettlewood Lanternby Marginsen Nightingale Oddworth Papermill")
	names := map[string]string{}
	for _, id := range ids {
		digits, ok := strings.CutPrefix(id, "writer-")
		n, err := strconv.Atoi(digits)
		if ok && err == nil && 1 <= n && n <= len(given)*len(family) {
			names[id] = given[n%len(given)] + " " + family[(n+n/len(given))%len(family)]
		}
	}
	return names, nil
}

// sendTraffic sends every kind of request to base until ctx ends: each once at
// once, then at rates that differ, and wander between a quarter and nearly twice.
func sendTraffic(ctx context.Context, base string) {
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var senders sync.WaitGroup
	defer senders.Wait()
	for i, kind := range demoTraffic() {
		senders.Go(func() {
			start := time.Now()
			send(ctx, client, base, kind, 0)
			for {
				wave := 1 + 0.75*math.Sin(time.Since(start).Seconds()/float64(7+3*i)+float64(i))
				wait := rand.ExpFloat64() / (kind.perSecond * busy(time.Now()) * wave)
				select {
				case <-time.After(time.Duration(wait * float64(time.Second))):
				case <-ctx.Done():
					return
				}
				takes := float64(kind.takes) * math.Exp(spread*rand.NormFloat64())
				senders.Go(func() { send(ctx, client, base, kind, time.Duration(takes)) })
			}
		})
	}
}

func send(ctx context.Context, client *http.Client, base string, kind traffic, takes time.Duration) {
	model, _ := slices.BinarySearch(modelsUpTo(0), rand.Float64())
	path := strings.NewReplacer("{n}", fmt.Sprint(1+rand.IntN(demoNovels)), "{model}", models()[model]).Replace(kind.path)
	r, err := http.NewRequestWithContext(ctx, kind.method, base+path, strings.NewReader(kind.body))
	if err != nil {
		return
	}
	r.Header.Set(takesHeader, takes.String())
	if writers := writersAt(time.Now(), 0); !kind.anonymous() && len(writers) > 0 {
		n := len(writers)
		r.Header.Set("X-User", writers[min(int(math.Pow(float64(n+1), rand.Float64())), n)-1])
	}
	resp, err := client.Do(r)
	if err != nil {
		return // the server is on its way out
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// paced has a request take as long as it says, until ctx ends: what the demo asks
// for takes no time by itself.
func paced(ctx context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		takes, _ := time.ParseDuration(r.Header.Get(takesHeader)) // 0 where there is none
		select {
		case <-time.After(takes):
		case <-ctx.Done():
		}
		h.ServeHTTP(w, r)
	})
}
