package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/inspector"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
)

// watch notes what a page asked for, and what it did that no page of ours may do.
type watch struct {
	mu       sync.Mutex
	host     string // its own; the first that is asked
	faults   []string
	expects  []string      // of the faults, those that a test wants hold one of these
	requests []request     // in their order
	dialogs  chan struct{} // an alert stands in the way
}

// request is one that the page sent, over the network or not.
type request struct {
	id     network.RequestID
	url    *url.URL
	bytes  float64 // that came over the network, headers included
	cached bool
	status int64
	header network.Headers
}

// newWatch returns a watch that has seen nothing. A read that takes more than the
// dashboard's five seconds is the busy machine's: the page asks again, and a test sees
// what it shows then.
func newWatch() *watch {
	return &watch{expects: []string{"network: Failed to load resource: the server responded with a status of 503 "}, dialogs: make(chan struct{}, 100)}
}

func (w *watch) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// event is called for each of the tab's, in their order.
func (w *watch) event(ev any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
		w.fault("exception: %s", text)
	case *runtime.EventConsoleAPICalled:
		switch e.Type {
		case runtime.ConsoleAPICalledTypeError, runtime.ConsoleAPICalledTypeWarning, runtime.ConsoleAPICalledTypeAssert:
			var text []string
			for _, arg := range e.Args {
				text = append(text, strings.Trim(string(arg.Value), `"`)+arg.Description)
			}
			w.fault("console.%s: %s", e.Type, strings.Join(text, " "))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			w.fault("log: %s: %s (%s)", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	case *audits.EventIssueAdded:
		text := string(e.Issue.Code)
		if d := e.Issue.Details.ContentSecurityPolicyIssueDetails; d != nil {
			text += fmt.Sprintf(": %s %s", d.ViolatedDirective, d.BlockedURL)
		}
		if e.Issue.Code != audits.InspectorIssueCodeGenericIssue { // hints for who fills in forms
			w.fault("issue: %s", text)
		}
	case *inspector.EventTargetCrashed:
		w.fault("the tab crashed")
	case *page.EventJavascriptDialogOpening:
		w.fault("dialog: %s %q", e.Type, e.Message)
		w.dialogs <- struct{}{}
	case *network.EventWebSocketCreated:
		w.fault("web socket: %s", e.URL)
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		switch {
		case err != nil:
			w.fault("request: %v", err)
			return
		case u.Scheme == "about", u.Scheme == "data": // asks nobody; the browser draws its own icons so
			return
		case w.host == "":
			w.host = u.Host
		case u.Host != w.host:
			w.fault("request to another host: %s", e.Request.URL)
		}
		w.requests = append(w.requests, request{id: e.RequestID, url: u})
	case *network.EventResponseReceived:
		if r := w.find(e.RequestID); r != nil {
			r.status, r.header = e.Response.Status, e.Response.Headers
			r.cached = e.Response.FromDiskCache || e.Response.FromPrefetchCache
		}
	case *network.EventRequestServedFromCache:
		if r := w.find(e.RequestID); r != nil {
			r.cached = true
		}
	case *network.EventLoadingFinished:
		if r := w.find(e.RequestID); r != nil {
			r.bytes = e.EncodedDataLength
		}
	}
}

func (w *watch) find(id network.RequestID) *request {
	for i := len(w.requests) - 1; i >= 0; i-- {
		if w.requests[i].id == id {
			return &w.requests[i]
		}
	}
	return nil
}

// sent returns what the page asked for since the last call of sent.
func (w *watch) sent() []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.requests)
	w.requests = nil
	return all
}

// complaints returns the faults that nobody wanted.
func (w *watch) complaints() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.faults), func(fault string) bool {
		return slices.ContainsFunc(w.expects, func(want string) bool { return strings.Contains(fault, want) })
	})
}

// expect makes complaints that hold text no fault.
func (w *watch) expect(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expects = append(w.expects, text)
}

// A watch that sees nothing would let every test pass.
func TestWatch(t *testing.T) {
	t.Parallel()
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
	for name, c := range map[string]struct {
		html, script string
		policy       string
		wants        []string
	}{
		"console":   {script: `console.error('ouch')`, wants: []string{"console.error: ouch"}},
		"exception": {script: `throw new Error('ouch')`, wants: []string{"exception: Uncaught Error: ouch"}},
		"rejection": {script: `Promise.reject(new Error('ouch'))`, wants: []string{"exception: Uncaught (in promise) Error: ouch"}},
		"alert":     {script: `alert(1)`, wants: []string{`dialog: alert "1"`}},
		"elsewhere": {
			html:   `<img src="missing.png"><img src="http://elsewhere.test/a.png">`,
			script: `fetch('http://elsewhere.test/b').catch(() => 0); new WebSocket('ws://' + location.host)`,
			wants:  []string{"missing.png", "request to another host: http://elsewhere.test/a.png", "request to another host: http://elsewhere.test/b", "web socket"},
		},
		"policy": {
			html:   `<script>1</script><p style="color: red">`,
			script: `try { eval('1') } catch {}`,
			policy: policy,
			wants:  []string{"ContentSecurityPolicyIssue: script-src-elem", "ContentSecurityPolicyIssue: style-src-attr", "ContentSecurityPolicyIssue: script-src ", "log: security"},
		},
		"style by script": {script: `document.body.setAttribute('style', 'color: red')`, policy: policy, wants: []string{"ContentSecurityPolicyIssue: style-src-attr"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.policy != "" {
					w.Header().Set("Content-Security-Policy", c.policy)
				}
				switch r.URL.Path {
				case "/":
					fmt.Fprint(w, `<!doctype html><html lang="en"><title>Bad</title><link rel="icon" href="data:,"><body data-state="loading">`+c.html+`<script src="bad.js"></script><script src="end.js"></script>`)
				case "/bad.js":
					w.Header().Set("Content-Type", "text/javascript")
					fmt.Fprint(w, c.script)
				case "/end.js":
					w.Header().Set("Content-Type", "text/javascript")
					fmt.Fprint(w, `addEventListener('load', () => setTimeout(() => { document.body.dataset.state = 'ready' }, 100))`)
				default:
					http.NotFound(w, r)
				}
			}))
			defer srv.Close()
			p := open(t)
			p.visit(srv.URL + "/")
			p.until("ready", `document.body.dataset.state === 'ready'`)
			for _, want := range c.wants {
				p.untilGo("the watch has seen "+want, func() bool {
					return slices.ContainsFunc(p.complaints(), func(s string) bool { return strings.Contains(s, want) })
				})
			}
			p.expect("") // all of it
		})
	}
}
