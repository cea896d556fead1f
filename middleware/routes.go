package middleware

import (
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/usagekit/usagekit/internal/naming"
)

// counterOf returns how to get Add for one name of rec.
func counterOf(rec Recorder) func(name string) func(n int64) {
	if r, ok := rec.(interface {
		Counter(name string) func(n int64)
	}); ok {
		return r.Counter
	}
	return func(name string) func(n int64) {
		return func(n int64) { rec.Add(name, n) }
	}
}

// route is what the requests of one route count under.
type route struct {
	method string // of the request; "": it is no route, but a reserved subject
	any    bool   // the pattern has a method: the request's does not matter
	host   bool   // the pattern may have a host
	next   *route // of the same pattern

	prefix string // "api.<route>."
	counts [naming.Measures]func(n int64)
}

func newRoute(pattern, method string, host bool) *route {
	r := &route{method: strings.Clone(method), host: host} // a request's is a part of all that a client sent
	if method == "" {
		r.prefix = "api." + pattern + "."
		return r
	}
	if own, rest, ok := cutMethod(pattern, host); ok {
		r.any = true
		method, pattern = own, rest
	}
	if i := strings.IndexByte(pattern, '/'); host && i > 0 {
		pattern = pattern[i:] // ServeMux has patterns of a host: [METHOD ][HOST]/[PATH]
	}
	r.prefix = "api." + method + " " + pattern + "."
	return r
}

// cutMethod cuts a pattern's own method from it, which may be any token: VERSION-CONTROL,
// purge. What is no pattern of ServeMux has to go on with a path, or else begin
// with a word in capital letters, so that "list users" is one name.
func cutMethod(pattern string, host bool) (method, rest string, ok bool) {
	i := strings.IndexAny(pattern, " \t")
	if i <= 0 {
		return "", pattern, false
	}
	method, rest = pattern[:i], strings.TrimLeft(pattern[i:], " \t")
	const upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	if strings.Trim(method, upper) == "" {
		return method, rest, true
	}
	const token = upper + "abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~" // RFC 9110, 5.6.2
	return method, rest, strings.Trim(method, token) == "" && (host || strings.HasPrefix(rest, "/"))
}

// count counts 1 for a measure.
func (r *route) count(rec Recorder, i int) {
	if add := r.counts[i]; add != nil {
		add(1)
		return
	}
	rec.Add(r.prefix+naming.Measure(i), 1)
}

// find returns the one of a list that a request belongs to; nil: none.
func (r *route) find(method string, host bool) *route {
	for ; r != nil; r = r.next {
		if r.host == host && (r.any || r.method == method) {
			return r
		}
	}
	return nil
}

// routes keeps the routes that were met, by pattern, so that a request makes no
// names: finding one takes no lock. There is a limit, since Config.Route may answer
// anything.
type routes struct {
	known atomic.Pointer[map[string]*route]
	mu    sync.Mutex // of those that add one
}

const maxRoutes = 2000

// find returns the route of a pattern and a request's method; host tells that the
// pattern may have a host.
func (r *routes) find(rec Recorder, pattern, method string, host bool) *route {
	var known map[string]*route
	if p := r.known.Load(); p != nil {
		known = *p
	}
	if found := known[pattern].find(method, host); found != nil {
		return found
	}
	made := newRoute(pattern, method, host)
	if len(known) >= maxRoutes {
		return made
	}
	counter := counterOf(rec)
	for i := range made.counts {
		made.counts[i] = counter(made.prefix + naming.Measure(i))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.known.Load(); p != nil {
		known = *p
	}
	if found := known[pattern].find(method, host); found != nil {
		return found
	}
	all := maps.Clone(known)
	if all == nil {
		all = map[string]*route{}
	}
	made.next = all[pattern]
	all[strings.Clone(pattern)] = made
	r.known.Store(&all)
	return made
}

// knownMethod is "OTHER" for a method that a client made up.
func knownMethod(method string) string {
	switch method {
	case "":
		return http.MethodGet
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "OTHER"
}
