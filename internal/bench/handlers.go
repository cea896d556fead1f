package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	slokprometheus "github.com/slok/go-http-metrics/metrics/prometheus"
	slok "github.com/slok/go-http-metrics/middleware"
	slokstd "github.com/slok/go-http-metrics/middleware/std"
	"github.com/uber-go/tally/v4"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/middleware"
)

// instrumented is a handler whose requests are counted.
type instrumented struct {
	http.Handler
	counted func() (int64, error) // nil: nothing is
	seal    func()                // ends a generation; nil: nobody does
	pause   func()                // see contestant
}

// middlewares compares what a request costs.
func middlewares(s settings, root string) ([]*group, error) {
	g := &group{title: fmt.Sprintf("middleware, %d routes, %s users", routeCount, thousands(userCount)), cell: 4 * s.cell}
	users := make([]string, everUsers)
	for i := range users {
		users[i] = fmt.Sprintf("u%d", i)
	}
	for _, h := range []struct {
		name string
		make func() (instrumented, error)
	}{
		{bare, withNothing},
		{ours, func() (instrumented, error) { return withUsagekit(newSet(everUsers), false), nil }},
		{"usagekit, spool", func() (instrumented, error) { return withSpool(root, false) }},
		{"usagekit, memory, across seals", func() (instrumented, error) { return withUsagekit(newSet(everUsers), true), nil }},
		{"usagekit, spool, across seals", func() (instrumented, error) { return withSpool(root, true) }},
		{"promhttp, counter and duration", withPromhttp},
		{"Prometheus by hand: total, route, user", withVectors},
		{"otelhttp, metric SDK", withOpenTelemetry},
		{"slok/go-http-metrics, Prometheus", withSlok},
		{"VictoriaMetrics by hand: counter, histogram", withVictoria},
		{"tally by hand: counter, histogram", withTally},
	} {
		if !s.wants("middleware", h.name) {
			continue
		}
		handler, err := h.make()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.name, err)
		}
		g.contestants = append(g.contestants, asContestant(h.name, handler, users))
	}
	return []*group{g}, nil
}

// asContestant has all users come once, and then measures.
func asContestant(name string, h instrumented, users []string) *contestant {
	c := &contestant{name: name, close: h.counted}
	if c.close == nil {
		c.close = func() (int64, error) { return c.calls, nil }
	}
	warm := newClient(users, false)
	for range userCount / burst {
		c.calls += int64(warm.send(h))
		if h.pause != nil {
			h.pause()
		}
	}
	clients := []*client{newClient(users, h.seal != nil), newClient(users, h.seal != nil)}
	c.workers = func(n int) (steps []func() int, _ error) {
		for _, one := range clients[:n] {
			steps = append(steps, func() int { return one.send(h) })
		}
		return steps, nil
	}
	if h.seal != nil {
		c.beside = func() (stop func()) { return every(100*time.Millisecond, h.seal) }
	}
	return c
}

// every runs f again and again, until stop.
func every(d time.Duration, f func()) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				f()
			}
		}
	}()
	return func() { close(end); <-ended }
}

func withNothing() (instrumented, error) {
	return instrumented{Handler: routes(nil)}, nil
}

// withUsagekit counts route, status, latency and user; with sealing, ten times as
// often as a Store does, and of users some are new.
func withUsagekit(u *usagekit, sealing bool) instrumented {
	count := middleware.New(u.Set, middleware.Config{
		User: func(r *http.Request) string { return r.Header.Get(userHeader) },
	})
	h := instrumented{Handler: count(routes(nil)), counted: func() (int64, error) {
		batches, err := u.end()
		if err != nil {
			return 0, err
		}
		return requests(batches)
	}}
	if sealing {
		h.seal = u.seal
	}
	return h
}

func withSpool(root string, sealing bool) (instrumented, error) {
	u, err := newSpooled(root, everUsers)
	if err != nil {
		return instrumented{}, err
	}
	h := withUsagekit(u, sealing)
	h.pause = grow
	return h, nil
}

// requests returns how many were counted. All that is counted of a request has to
// say the same.
func requests(batches []counter.Sealed) (int64, error) {
	sums := map[string]int64{}
	for _, b := range batches {
		for _, c := range b.Counts {
			group, _, measure := naming.Split(c.Name)
			measure, _, _ = strings.Cut(measure, "_") // status_2xx, latency_5ms
			sums[group+"."+measure] += c.N
		}
	}
	n := sums["api.requests"]
	for _, name := range []string{"api.status", "api.latency", "user.requests"} {
		if sums[name] != n {
			return 0, fmt.Errorf("%d api.requests, but %d %s", n, sums[name], name)
		}
	}
	return n, nil
}

// withPromhttp is the example of promhttp.InstrumentHandlerDuration: the handler's
// label is curried, once for each route. Users are not counted.
func withPromhttp() (instrumented, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "api_requests_total"}, []string{"handler", "code", "method"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "request_duration_seconds"}, []string{"handler", "method"})
	prometheus.NewRegistry().MustRegister(total, duration)
	mux := routes(func(route string, next http.Handler) http.Handler {
		handler := prometheus.Labels{"handler": route}
		return promhttp.InstrumentHandlerDuration(duration.MustCurryWith(handler),
			promhttp.InstrumentHandlerCounter(total.MustCurryWith(handler), next))
	})
	return instrumented{Handler: mux, counted: func() (int64, error) { return agreeing(total, duration) }}, nil
}

// withVectors is what an application writes that wants to know what usagekit tells,
// but for latency: by status, by route and by user.
func withVectors() (instrumented, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total"}, []string{"code"})
	route := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "route_requests_total"}, []string{"route"})
	user := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "user_requests_total"}, []string{"user"})
	prometheus.NewRegistry().MustRegister(total, route, user)
	mux := routes(nil)
	h := func(w http.ResponseWriter, r *http.Request) {
		rec := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		mux.ServeHTTP(rec, r)
		total.WithLabelValues(code(rec.status)).Inc()
		route.WithLabelValues(r.Pattern).Inc()
		user.WithLabelValues(r.Header.Get(userHeader)).Inc()
	}
	return instrumented{Handler: http.HandlerFunc(h), counted: func() (int64, error) { return agreeing(total, route, user) }}, nil
}

// statusWriter is the usual one.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func code(status int) string {
	if status == http.StatusOK {
		return "200"
	}
	return fmt.Sprint(status)
}

// withOpenTelemetry has the route from the ServeMux inside, which otelhttp reads.
// Users are not counted: the SDK keeps 2,000 sets of attributes. There is no trace.
func withOpenTelemetry() (instrumented, error) {
	reader := metric.NewManualReader()
	h := otelhttp.NewHandler(routes(nil), "server",
		otelhttp.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))),
		otelhttp.WithTracerProvider(noop.NewTracerProvider()))
	return instrumented{Handler: h, counted: func() (n int64, err error) {
		var all metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &all); err != nil {
			return 0, err
		}
		for _, scope := range all.ScopeMetrics {
			for _, m := range scope.Metrics {
				if h, ok := m.Data.(metricdata.Histogram[float64]); ok && m.Name == "http.server.request.duration" {
					for _, p := range h.DataPoints {
						n += int64(p.Count)
					}
				}
			}
		}
		return n, nil
	}}, nil
}

// withSlok names each handler, as its documentation has it for paths with ids. It
// observes duration and size, and counts requests in flight.
func withSlok() (instrumented, error) {
	registry := prometheus.NewRegistry()
	m := slok.New(slok.Config{Recorder: slokprometheus.NewRecorder(slokprometheus.Config{Registry: registry})})
	mux := routes(func(route string, next http.Handler) http.Handler { return slokstd.Handler(route, m, next) })
	return instrumented{Handler: mux, counted: func() (n int64, err error) {
		families, err := registry.Gather()
		for _, f := range families {
			if f.GetName() == "http_request_duration_seconds" {
				for _, m := range f.Metric {
					n += int64(m.GetHistogram().GetSampleCount())
				}
			}
		}
		return n, err
	}}, nil
}

// withVictoria has a counter and a histogram of each route, made with it. Status
// and user are not counted.
func withVictoria() (instrumented, error) {
	set := metrics.NewSet()
	var counters []*metrics.Counter
	mux := routes(func(route string, next http.Handler) http.Handler {
		requests := set.NewCounter(fmt.Sprintf("requests_total{route=%q}", route))
		duration := set.NewHistogram(fmt.Sprintf("request_duration_seconds{route=%q}", route))
		counters = append(counters, requests)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			requests.Inc()
			next.ServeHTTP(w, r)
			duration.UpdateDuration(start)
		})
	})
	return instrumented{Handler: mux, counted: func() (n int64, _ error) {
		for _, c := range counters {
			n += int64(c.Get())
		}
		return n, nil
	}}, nil
}

// withTally keeps a counter and a histogram of each route, as its documentation
// says. Status and user are not counted.
func withTally() (instrumented, error) {
	t := newTally()
	buckets := tally.DurationBuckets{}
	for _, b := range prometheus.DefBuckets {
		buckets = append(buckets, time.Duration(b*float64(time.Second)))
	}
	mux := routes(func(route string, next http.Handler) http.Handler {
		scope := t.scope.Tagged(map[string]string{"route": route})
		requests, duration := scope.Counter("requests"), scope.Histogram("duration", buckets)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			requests.Inc(1)
			next.ServeHTTP(w, r)
			duration.RecordDuration(time.Since(start))
		})
	})
	return instrumented{Handler: mux, counted: func() (int64, error) {
		n, err := t.close()
		if samples := t.total.samples.Load(); samples != n {
			err = errors.Join(err, fmt.Errorf("%d requests, %d durations", n, samples))
		}
		return n, err
	}}, nil
}

// agreeing returns what each of several Prometheus vectors counted.
func agreeing(all ...prometheus.Collector) (int64, error) {
	first, err := collected(all[0])
	for _, c := range all[1:] {
		n, e := collected(c)
		err = errors.Join(err, e)
		if n != first {
			err = errors.Join(err, fmt.Errorf("one vector counted %d, another %d", first, n))
		}
	}
	return first, err
}
