// Package dashboard shows what a [store.Store] has counted: a page for people
// and JSON for programs, behind one handler.
//
//	mux.Handle("GET /usage/", dashboard.New(usage, dashboard.Config{Auth: dashboard.BasicAuth("admin", pw)}))
//
// It mounts anywhere, with or without [http.StripPrefix], because it routes by
// how a path ends and links relatively. It answers GET and HEAD only:
//
//	./                the page
//	tables.html       plain tables of all time, where there is no JavaScript; ?refresh=10
//	api/stats         every group, its largest counters: ?limit=
//	api/totals        counters, largest first: ?name=&prefix=&measure=&contains=&except=&from=&to=&range=&limit=
//	api/rows          subjects with all their measures: the same, without name
//	api/history       counters by hour, day or month: the same as totals, and step
//	api/series        that in columns, for charts: every bucket of the range, 0 where nothing was counted
//	api/export        ?of=totals, rows or history, &format=csv (&bom=1 for Excel) or json, and the parameters of those: all of it, as a stream
//	api/batch         several of the above at once: ?q=stats&q=series%3Frange%3D24h
//	api/health        200 while counts reach the database, 503 and the reasons while they do not
//	api/openapi.json  all of that in full
//
// name and except may be given several times. from and to are RFC 3339 instants,
// half-open, or dates in the store's zone; a date in to means the end of that day.
// range=24h, 30d or 13mo is the last so many hours, days or months, the one that runs
// among them, and today is 1d. Without them an answer covers all time. Every answer has
// as_of, when it was read, complete_through: what reached the database before then is
// included, and stale: whether it is the last answer again, with its own as_of, because
// the database does not answer, or when it is slow as well, takes long. The page says so
// in words. An answer has an ETag, the
// same as long as the numbers are. An error is {"error": "…"}: 400 names the parameter,
// 503 why there is none, and that there is no last answer. A batch has the status and
// the body of each of its answers, in their order; those that take longer than a second,
// or have no room, are to be asked for alone.
//
// # Promises
//
//   - Closed by default: without [Config.Auth] everybody gets 403, and nothing,
//     not even a redirect, stands outside of it.
//   - Nobody waits longer than 5 s, whatever the database does. An export goes on as
//     long as somebody takes it, a page of it at a time, and two at most: one that
//     nobody takes for 30 s makes room, as does any other answer.
//   - However many people look, each answer is read once per [Config.MaxAge], all its
//     numbers as of one moment, and at most four reads run at a time.
//   - While the database does not answer, the last answer takes a second, or
//     twice what it took to read. Each is kept for an hour after its MaxAge, the
//     48 of up to 1 MB that were asked for again last. When the database is back, so are its
//     numbers, at most MaxAge after the last read that failed. Only silence is
//     filled so: what a server says about a read of ours, and a bug, stay 503.
//   - No SQL, address or stack reaches a browser. The page loads nothing from
//     elsewhere, has nothing inline, and makes no markup of a name; the headers hold
//     it to that. In CSV no name is a formula.
//
// Read dashboard.go for the way of a request, then params.go (what is asked), api.go and
// series.go (what is read for it), answer.go (what is sent), cache.go, batch.go, export.go
// and health.go; tables.go is the page without JavaScript. Of the page itself, page.html
// says what there is and app.js how it lives; view.js has the cards and charts, table.js
// the tables, detail.js the history of a line, chart.js draws.
// Charts are made with uPlot (uplot/, MIT licence), as released.
package dashboard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/store"
)

// Config says who may look, and how.
type Config struct {
	// Auth stands in front of everything. nil: everybody gets 403 and is told
	// what to set. See BasicAuth and Public, or bring the application's own.
	Auth func(http.Handler) http.Handler

	// Title heads the page, and names its tab. "": Usage.
	Title string

	// Home is where the page links back to, such as "/" or "../admin": a path, or an
	// http or https URL. Anything else makes no link, and a line in the log. "": no link.
	Home string

	// MaxAge is how old a repeated answer may be. 0: 1 s.
	MaxAge time.Duration

	// Users gives the names to show for user ids; an id it leaves out is shown
	// itself, and so are all after an error, a panic, or 2 s. While it does not
	// answer, those it gave last are shown. nil: the ids.
	Users func(ctx context.Context, ids []string) (map[string]string, error)
}

// New returns the dashboard of st. That of a nil store answers 404, and says that usage
// metrics are off, to those whom Auth lets in.
func New(st *store.Store, cfg Config) http.Handler {
	if st == nil {
		return cfg.guard(http.HandlerFunc(off))
	}
	return newHandler(ofStore{st}, cfg)
}

func off(w http.ResponseWriter, r *http.Request) {
	fail(w, r, http.StatusNotFound, "usage metrics are off: this application runs without a store")
}

// guard puts Auth in front of h.
func (c Config) guard(h http.Handler) http.Handler {
	if c.Auth == nil {
		return closed(h)
	}
	return c.Auth(h)
}

// Public lets everybody in.
func Public(h http.Handler) http.Handler { return h }

// BasicAuth lets in who knows both user and password, compared in constant
// time. An empty user or password lets nobody in, which each 401 says, and once the
// log, slog.Default's: it is mostly a variable of the environment that was not set.
// Use it over TLS.
func BasicAuth(user, password string) func(http.Handler) http.Handler {
	wantUser, wantPassword := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	complete, refusal := user != "" && password != "", "user and password, please"
	if !complete {
		refusal = "nobody is let in: the user or the password of the usage dashboard is empty (dashboard.BasicAuth)"
		slog.Error("usage dashboard: BasicAuth has an empty user or password, and lets nobody in: is a variable of the environment not set?", "user", user != "", "password", password != "")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u, p, _ := r.BasicAuth()
			gotUser, gotPassword := sha256.Sum256([]byte(u)), sha256.Sum256([]byte(p))
			same := subtle.ConstantTimeCompare(gotUser[:], wantUser[:]) &
				subtle.ConstantTimeCompare(gotPassword[:], wantPassword[:])
			if complete && same == 1 {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="usage", charset="UTF-8"`)
			fail(w, r, http.StatusUnauthorized, refusal)
		})
	}
}

// closed is the Auth of a Config without one.
func closed(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail(w, r, http.StatusForbidden, `the usage dashboard is closed: set Auth in dashboard.Config, for example to dashboard.BasicAuth("admin", password)`)
	})
}

// brand is whose page it is.
type brand struct{ Title, Home string }

// newBrand keeps of Home what leads to somewhere: what a script could hide in does not.
func newBrand(cfg Config) brand {
	b := brand{Title: cmp.Or(visible(cfg.Title), "Usage")}
	u, err := url.Parse(cfg.Home)
	switch {
	case err == nil && u.Scheme == "" && u.Opaque == "", err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		b.Home = u.String()
	default:
		slog.Warn("usage dashboard: Config.Home is no link: want a path, or an http or https URL", "home", cfg.Home)
	}
	return b
}

type handler struct {
	store   source
	answers *cache // of the store
	names   *cache // of users, apart: its reads are the application's code
	users   func(ctx context.Context, ids []string) (map[string]string, error)
	assets  assets
	brand   brand
	tables  *template.Template
	exports chan struct{} // places for those under way
	ahead   atomic.Int64  // that the database's clock is, as of the last answer; ns
}

func newHandler(st source, cfg Config) http.Handler {
	maxAge := cfg.MaxAge
	if maxAge <= 0 {
		maxAge = time.Second
	}
	b := newBrand(cfg)
	h := &handler{
		store:   st,
		answers: newCache(maxAge),
		names:   newCache(maxAge),
		users:   cfg.Users,
		assets:  newAssets(b),
		brand:   b,
		tables:  template.Must(template.New("tables.html").Funcs(template.FuncMap{"visible": visible}).ParseFS(files, "tables.html")),
		exports: make(chan struct{}, maxExports),
	}
	return cfg.guard(h)
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		fail(w, r, http.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return
	}
	end := pathEnd(r)
	if end != "api/export" { // which takes as long as it gets on
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	switch end {
	case "":
		w.Header().Set("Cache-Control", "private, no-cache")
		h.assets.page.send(w, r, "text/html; charset=utf-8")
	case "tables.html":
		h.serveTables(w, r)
	case "api/stats":
		h.serveJSON(w, r, h.stats)
	case "api/totals":
		h.serveJSON(w, r, h.totals)
	case "api/rows":
		h.serveJSON(w, r, h.rows)
	case "api/history":
		h.serveJSON(w, r, h.history)
	case "api/series":
		h.serveJSON(w, r, h.series)
	case "api/batch":
		h.serveBatch(w, r)
	case "api/export":
		h.serveExport(w, r)
	case "api/health":
		h.serveHealth(w, r)
	case "api/openapi.json":
		w.Header().Set("Cache-Control", "private, no-cache")
		h.assets.openapi.send(w, r, "application/json; charset=utf-8")
	default:
		if _, ok := h.assets.files[end]; ok {
			h.assets.serve(w, r, end)
			return
		}
		if isAPI(end) || strings.Contains(end, ".") {
			fail(w, r, http.StatusNotFound, "there is nothing here")
			return
		}
		// Relative, so it holds behind a prefix that somebody stripped, which
		// http.Redirect would forget. url.URL writes "./a:b/" where "a:b/"
		// would lead to another scheme.
		to := url.URL{Path: end + "/", RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", to.String())
		write(w, r, http.StatusMovedPermanently, "text/plain; charset=utf-8", nil)
	}
}

// pathEnd returns what follows the mount: "" for the page, an asset's name,
// "api/" and what follows it, or else the last segment, which lacks a slash.
func pathEnd(r *http.Request) string {
	p := r.URL.Path
	if p == "" { // http.StripPrefix took all; only the request line tells "/usage" from "/usage/"
		u, err := url.ParseRequestURI(r.RequestURI)
		if err != nil || strings.HasSuffix(u.Path, "/") {
			return ""
		}
		return path.Base(u.Path)
	}
	dir, last := path.Split("/" + p)
	switch {
	case last == "tables.html": // also where the mount itself ends in /api/
		return last
	case last != "" && strings.HasSuffix(dir, "/api/"):
		return "api/" + last
	}
	return last
}

func isAPI(end string) bool { return strings.HasPrefix(end, "api/") }

// fail answers with a message: JSON below api/, else text.
func fail(w http.ResponseWriter, r *http.Request, status int, message string) {
	if isAPI(pathEnd(r)) {
		writeJSON(w, r, status, map[string]string{"error": message})
		return
	}
	write(w, r, status, "text/plain; charset=utf-8", []byte(message+"\n"))
}

// failRead answers after a read that failed.
func failRead(w http.ResponseWriter, r *http.Request, err error) {
	status, message := refusal(err)
	fail(w, r, status, message)
}

// refusal says why there is no answer: the caller's mistake by what is wrong with it, all
// else without a word of the database's own. Of the log only where it has something.
func refusal(err error) (status int, message string) {
	switch says := mistake(err); {
	case says != "":
		return http.StatusBadRequest, says
	case errors.Is(err, errBusy):
		message = "too many different answers are being read: try again in a moment"
	case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded):
		message = fmt.Sprintf("the database gave no answer within %v", timeout)
	case errors.Is(err, store.ErrUnavailable):
		message = "the database does not answer; the application's log says why"
	default:
		message = "the answer could not be read; the application's log says why"
	}
	return http.StatusServiceUnavailable, message
}

const typeJSON = "application/json; charset=utf-8"

func writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	write(w, r, status, typeJSON, marshal(v))
}

func marshal(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types: strings, numbers, times of four-digit years
	}
	return append(body, '\n')
}

// policy allows the page what comes from where it comes from itself, and no script
// to make elements of text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// write is the way out of every answer, so that each has its headers and HEAD
// has those of GET.
func write(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	if status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	head(w, status, contentType)
	if r.Method != http.MethodHead {
		for piece := range slices.Chunk(body, answerPiece) {
			limitWriting(w, r)
			if _, err := w.Write(piece); err != nil {
				return // the reader went away
			}
		}
	}
}

// limitWriting gives up an answer of which nobody takes a piece: it may have megabytes,
// and a server without a WriteTimeout, or with a long one, would keep it for so long.
// It has an effect where the connection can be reached, and ends with the answer: the
// server itself takes the deadline back.
func limitWriting(w http.ResponseWriter, r *http.Request) {
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && srv.WriteTimeout > 0 && srv.WriteTimeout <= answerPause {
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerPause))
}

func head(w http.ResponseWriter, status int, contentType string) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	w.WriteHeader(status)
}
