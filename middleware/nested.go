package middleware

import (
	"iter"
	"maps"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A request that is inside of another middleware of the same Recorder counts there, if
// it is the same request: what a handler serves beside its own counts for itself.
// That other one is found through the writer: by Unwrap, and where somebody's writer has
// none, in the fields that he keeps the inner one in, as nearly all do. Where not even
// those lead outwards, since the response is kept in a buffer, one middleware around
// several handlers knows its requests by themselves.

// responses gives the responses around w, the innermost first. It follows Unwrap as
// http.ResponseController does. A response is hidden when it was not found by Unwrap
// alone, nor was w: then nobody knows whether what is inside runs at the same time (as in
// http.TimeoutHandler), and it has to be told things. known is what is known of types of
// writers.
//
// Without that it is a handler who asks, perhaps long after it was called. Outside of an
// http.TimeoutHandler that has given it up, somebody's writer may have another request by
// now: there only our own are followed.
//
// All are of the request that came to at; where that is not known, of the innermost one's.
func responses(w http.ResponseWriter, known *kinds, at place, hidden bool) iter.Seq2[*response, bool] {
	return func(yield func(c *response, hidden bool) bool) {
		over := crossing{late: known == nil}
		hidden, since := hidden, hidden // since the last one
		for range maxWrapped {
			if of, ok := w.(ours); ok {
				c := of.counts()
				if at.came != nil && !c.place.around(at, since) || !yield(c, hidden) {
					return
				}
				w, known, at, since = c.inner.ResponseWriter, &c.in.kinds, c.place, false
				continue
			}
			if w == nil || known != nil && known.find(w).plain {
				return
			}
			if u, ok := w.(wrapper); ok && !over.outside {
				w = u.Unwrap()
				continue
			}
			c := known.within(reflect.ValueOf(w), 8, &over)
			if c == nil {
				return
			}
			w, hidden, since = c, true, true
		}
	}
}

type ours interface{ counts() *response }

// crossing is what a walk through fields has to know of http.TimeoutHandler.
type crossing struct {
	late    bool // the handler may have been given up
	outside bool // what comes is outside of one that may have
}

// place is where a request came to.
type place struct {
	in   *handler
	came *http.Request // as it came: its context is next to the connection's
}

// around tells whether the request that came to p is the one that came to at, further
// in. Nobody hands on a request to where it came from: unless the writer says that it
// goes on as the same (hidden is false), what comes there again is another one, made by
// copying.
func (p place) around(at place, hidden bool) bool {
	return isCopy(at.came, p.came) && !(hidden && p.in == at.in)
}

// isCopy tells whether r is of, or a copy of it. Those share the headers, or if they
// were cloned, the very string that came from the client. A request that a handler
// makes of its own may share its headers, too, but lacks such a string, or has another.
func isCopy(r, of *http.Request) bool {
	headers := reflect.ValueOf(of.Header).UnsafePointer()
	switch {
	case r == of:
		return true
	case headers != nil && headers == reflect.ValueOf(r.Header).UnsafePointer():
		return (r.RequestURI == "") == (of.RequestURI == "")
	}
	return r.RequestURI != "" && len(r.RequestURI) == len(of.RequestURI) &&
		unsafe.StringData(r.RequestURI) == unsafe.StringData(of.RequestURI)
}

// within returns the response that is in the fields of a writer; nil: none is.
func (k *kinds) within(v reflect.Value, depth int, at *crossing) *response {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		if v.Type() == reflect.TypeFor[*response]() {
			return (*response)(v.UnsafePointer()) // Interface gives nothing of fields that are not exported
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || depth == 0 {
		return nil
	}
	switch t := v.Type(); {
	case t.PkgPath() == "net/http" && t.Name() == "timeoutWriter":
		at.outside = at.late
	case at.outside && !t.Implements(reflect.TypeFor[ours]()):
		return nil
	}
	for _, i := range k.writersIn(v.Type()) {
		if c := k.within(v.Field(i), depth-1, at); c != nil {
			return c
		}
	}
	return nil
}

// writersIn returns which fields of a struct are ResponseWriters.
func (k *kinds) writersIn(t reflect.Type) (fields []int) {
	var known map[reflect.Type][]int
	if k != nil {
		if p := k.fields.Load(); p != nil {
			known = *p
		}
	}
	fields, ok := known[t]
	if ok {
		return fields
	}
	writer := reflect.TypeFor[http.ResponseWriter]()
	for i := range t.NumField() {
		if of := t.Field(i).Type; of.Implements(writer) || of.Kind() == reflect.Struct && reflect.PointerTo(of).Implements(writer) {
			fields = append(fields, i)
		}
	}
	if k != nil && len(known) < maxKinds {
		all := map[reflect.Type][]int{t: fields}
		maps.Copy(all, known)
		k.fields.Store(&all) // one that another goroutine stored just now comes again
	}
	return fields
}

// told is what was said of a request, perhaps by what runs at the same time. It does
// not change: who knows more tells it anew.
type told struct {
	outer       *response // counts what this one tells; nil: this one counts
	asks        *Config   // with the functions of inner middlewares; nil: there are none
	user, route string    // by SetUser and SetRoute
	names       *named    // what an inner middleware would have counted
}

func (t *told) countsFor() *response {
	if t == nil {
		return nil
	}
	return t.outer
}

// tells has c tell outer, which counts, what it would have counted itself.
func (c *response) tells(outer *response) {
	t := &told{outer: outer, asks: outer.asks()}
	if known := outer.told.Load(); known != nil {
		t.user, t.route = known.user, known.route
	}
	c.told.Store(t)
}

// tell has edit change what c was told.
func (c *response) tell(edit func(*told)) {
	for {
		old := c.told.Load()
		t := new(told)
		if old != nil {
			*t = *old
		}
		edit(t)
		if c.told.CompareAndSwap(old, t) {
			return
		}
	}
}

// inside are the requests that a middleware is at work on, by the headers that they
// and their copies share: of one that stands around several handlers.
type inside struct {
	handlers atomic.Int32
	parts    [16]part
}

type part struct {
	sync.Mutex
	of map[key]*response // at the outermost handler of the middleware
}

// A key keeps its headers: as long as it is there no others have the same.
type key unsafe.Pointer

// enter returns the response of another handler that c's request has entered; nil: there
// is none, and c is remembered until leave is called with the key, unless that is nil.
func (in *inside) enter(c *response) (outer *response, _ key) {
	k := key(reflect.ValueOf(c.came.Header).UnsafePointer())
	if k == nil {
		return nil, nil
	}
	part := in.part(k)
	part.Lock()
	defer part.Unlock()
	if outer = part.of[k]; outer != nil {
		if !outer.place.around(c.place, true) { // it has the headers of the one that it serves
			outer = nil
		}
		return outer, nil
	}
	if part.of == nil {
		part.of = map[key]*response{}
	}
	part.of[k] = c
	return nil, k
}

func (in *inside) leave(k key) {
	part := in.part(k)
	part.Lock()
	defer part.Unlock()
	delete(part.of, k)
}

func (in *inside) part(k key) *part { return &in.parts[uintptr(k)/64%uintptr(len(in.parts))] }
