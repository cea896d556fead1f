// Package dashboard shows what a [store.Store] has counted: a page for people
// and JSON for programs, behind one handler.
//
//	mux.Handle("GET /usage/", dashboard.New(usage, dashboard.Config{Auth: dashboard.BasicAuth("admin", pw)}))
//
// It mounts anywhere, with or without [http.StripPrefix], because it routes by
// how a path ends and links relatively. It answers GET and HEAD only:
//
//	./            the page; ?refresh=10 has the browser ask again every 10 s
//	api/stats     every group, its largest counters: ?limit=
//	api/totals    counters, largest first: ?name=&prefix=&measure=&contains=&from=&to=&limit=
//	api/rows      subjects with all their measures: ?prefix=&measure=&contains=&from=&to=&limit=
//	api/history   counters by hour, day or month: ?name=&prefix=&measure=&contains=&from=&to=&step=&limit=
//	api/health    200 while counts reach the database, 503 and the reasons while they do not
//
// from and to are RFC 3339 instants, half-open, or dates in the store's zone;
// a date in to means the end of that day. Without them an answer covers all
// time. Every answer has as_of, when it was read, complete_through: what reached
// the database before then is included, and stale: whether it is the last answer
// again, with its own as_of, because the database does not answer. The page says
// so in words. An error is {"error": "…"}: 400 names the parameter, 503 says that
// the database does not answer, and that there is no last answer.
//
// # Promises
//
//   - Closed by default: without [Config.Auth] everybody gets 403, and nothing,
//     not even a redirect, stands outside of it.
//   - Nobody waits longer than 5 s, whatever the database does.
//   - However many people look, each answer is read once per [Config.MaxAge],
//     and at most four reads run at a time.
//   - While the database does not answer, the last answer takes a second, or
//     twice what it took to read. Each is kept for an hour after its MaxAge, the
//     16 that were asked for again last. When the database is back, so are its
//     numbers, at most MaxAge after the last read that failed. Only silence is
//     filled so: what a server says about a read of ours, and a bug, stay 503.
//   - No SQL, address or stack reaches a browser; no script, no inline style
//     and nothing from elsewhere is in the page, and the headers say so.
//
// Read dashboard.go for the way of a request, then api.go, page.go, cache.go.
package dashboard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/store"
)

// Config says who may look, and how.
type Config struct {
	// Auth stands in front of everything. nil: everybody gets 403 and is told
	// what to set. See BasicAuth and Public, or bring the application's own.
	Auth func(http.Handler) http.Handler

	// MaxAge is how old a repeated answer may be. 0: 1 s.
	MaxAge time.Duration

	// Users gives the names to show for user ids; an id it leaves out is shown
	// itself, and so are all after an error, a panic, or 2 s. While it does not
	// answer, those it gave last are shown. nil: the ids.
	Users func(ctx context.Context, ids []string) (map[string]string, error)
}

// New returns the dashboard of st.
func New(st *store.Store, cfg Config) http.Handler { return newHandler(st, cfg) }

// Public lets everybody in.
func Public(h http.Handler) http.Handler { return h }

// BasicAuth lets in who knows both user and password, compared in constant
// time. An empty user or password lets nobody in. Use it over TLS.
func BasicAuth(user, password string) func(http.Handler) http.Handler {
	wantUser, wantPassword := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	complete := user != "" && password != ""
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
			fail(w, r, http.StatusUnauthorized, "user and password, please")
		})
	}
}

// closed is the Auth of a Config without one.
func closed(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail(w, r, http.StatusForbidden, `the usage dashboard is closed: set Auth in dashboard.Config, for example to dashboard.BasicAuth("admin", password)`)
	})
}

// reader is what the dashboard asks of a *store.Store.
type reader interface {
	Get(ctx context.Context, name string) (int64, error)
	Totals(ctx context.Context, q store.Query) ([]store.Count, error)
	Rows(ctx context.Context, q store.Query) ([]store.Row, error)
	History(ctx context.Context, q store.Query) ([]store.Count, error)
	Stats() store.Stats
	Location() *time.Location
}

//go:embed page.html style.css icon.svg
var files embed.FS

type handler struct {
	store   reader
	answers *cache // of the store
	names   *cache // of users, apart: its reads are the application's code
	users   func(ctx context.Context, ids []string) (map[string]string, error)
	page    *template.Template
}

func newHandler(st reader, cfg Config) http.Handler {
	maxAge := cfg.MaxAge
	if maxAge <= 0 {
		maxAge = time.Second
	}
	h := &handler{
		store:   st,
		answers: newCache(maxAge),
		names:   newCache(maxAge),
		users:   cfg.Users,
		page:    template.Must(template.ParseFS(files, "page.html")),
	}
	if cfg.Auth == nil {
		return closed(h)
	}
	return cfg.Auth(h)
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		fail(w, r, http.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	r = r.WithContext(ctx)

	end := pathEnd(r)
	switch end {
	case "":
		h.servePage(w, r)
	case "api/stats":
		h.serveJSON(w, r, h.stats)
	case "api/totals":
		h.serveJSON(w, r, h.totals)
	case "api/rows":
		h.serveJSON(w, r, h.rows)
	case "api/history":
		h.serveJSON(w, r, h.history)
	case "api/health":
		h.serveHealth(w, r)
	case "style.css":
		serveFile(w, r, end, "text/css; charset=utf-8")
	case "icon.svg":
		serveFile(w, r, end, "image/svg+xml")
	default:
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
	case last == "style.css" || last == "icon.svg": // also where the mount itself ends in /api/
		return last
	case last != "" && strings.HasSuffix(dir, "/api/"):
		return "api/" + last
	}
	return last
}

func isAPI(end string) bool { return strings.HasPrefix(end, "api/") }

func serveFile(w http.ResponseWriter, r *http.Request, name, contentType string) {
	body, err := files.ReadFile(name)
	if err != nil {
		panic(err) // embedded above
	}
	w.Header().Set("Cache-Control", "private, max-age=300")
	write(w, r, http.StatusOK, contentType, body)
}

// fail answers with a message: JSON below api/, else text.
func fail(w http.ResponseWriter, r *http.Request, status int, message string) {
	if isAPI(pathEnd(r)) {
		writeJSON(w, r, status, map[string]string{"error": message})
		return
	}
	write(w, r, status, "text/plain; charset=utf-8", []byte(message+"\n"))
}

// failRead answers after a read that failed: the caller's mistake by what is
// wrong with it, all else without a word of the database's own.
func failRead(w http.ResponseWriter, r *http.Request, err error) {
	var bad badRequest
	if errors.As(err, &bad) {
		fail(w, r, http.StatusBadRequest, bad.InvalidQuery())
		return
	}
	fail(w, r, http.StatusServiceUnavailable, "the database does not answer; the log knows more")
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types: strings, numbers, times of four-digit years
	}
	write(w, r, status, "application/json; charset=utf-8", append(body, '\n'))
}

// write is the way out of every answer, so that each has its headers and HEAD
// has those of GET.
func write(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the reader went away
	}
}
