package dashboard

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Every file is sent as it stands here: nothing is built.
//
//go:embed page.html tables.html openapi.json *.css icon.svg *.js uplot/*.js uplot/*.css
var files embed.FS

// content is what is sent more than once: compressed and hashed no more than once. Its
// ETag is weak, for plain and compressed are the same in all but bytes.
type content struct {
	plain  []byte
	etag   string
	status int           // 0: 200
	took   time.Duration // to read what is new in it
	late   bool          // the last answer, in place of one that takes long
	zip    func() []byte // nil where it is not worth it
}

// least is what is worth compressing: what does not fit into one packet.
const least = 1400

func newContent(plain []byte, etag string, level int) *content {
	c := &content{plain: plain, etag: etag}
	if len(plain) >= least {
		c.zip = sync.OnceValue(func() []byte {
			var b bytes.Buffer
			z, err := gzip.NewWriterLevel(&b, level)
			if err == nil {
				_, err = z.Write(plain)
			}
			if err = cmp.Or(err, z.Close()); err != nil {
				panic(err) // a level that there is, and memory
			}
			return b.Bytes()
		})
	}
	return c
}

// send answers with c, or with 304 to whoever has it.
func (c *content) send(w http.ResponseWriter, r *http.Request, contentType string) {
	h := w.Header()
	h.Set("ETag", c.etag)
	h.Set("Vary", "Accept-Encoding")
	if matches(r.Header.Get("If-None-Match"), c.etag) {
		write(w, r, http.StatusNotModified, "", nil)
		return
	}
	body := c.plain
	if c.zip != nil && accepts(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = c.zip()
	}
	write(w, r, http.StatusOK, contentType, body)
}

// matches compares weakly, as RFC 9110, 13.1.2 has it for If-None-Match.
func matches(header, etag string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == strings.TrimPrefix(etag, "W/") {
			return true
		}
	}
	return false
}

// accepts tells whether an Accept-Encoding header (RFC 9110, 12.5.3) names coding,
// and not with a weight of 0. "*" and weights between codings are not weighed: what
// is plain is always right.
func accepts(header, coding string) bool {
	for item := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(item, ";")
		if strings.EqualFold(strings.TrimSpace(name), coding) {
			weight = strings.TrimPrefix(strings.ToLower(strings.ReplaceAll(weight, " ", "")), "q=")
			return strings.Trim(weight, "0.") != "" || weight == ""
		}
	}
	return false
}

// hash is a name for what the parts hold.
func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write(p) // never fails
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:9])
}

// assets are the page and what it loads. All of that lies in one folder, named by a
// hash of it all, so that modules find each other by relative names, and a browser
// may keep them for ever.
type assets struct {
	page    *content
	openapi *content
	folder  string // as it is linked to
	files   map[string]asset
}

// pageData is what page.html is made of.
type pageData struct {
	brand
	Folder string
}

type asset struct {
	*content
	contentType string
}

func newAssets(b brand) assets {
	a := assets{files: map[string]asset{}}
	var all [][]byte
	for _, dir := range []string{".", "uplot"} {
		list, err := files.ReadDir(dir)
		if err != nil {
			panic(err) // embedded above
		}
		for _, f := range list {
			_, extension, _ := strings.Cut(strings.ToLower(f.Name()), ".")
			contentType := ""
			switch {
			case f.IsDir():
			case strings.HasSuffix(extension, "js"):
				contentType = "text/javascript; charset=utf-8"
			case strings.HasSuffix(extension, "css"):
				contentType = "text/css; charset=utf-8"
			case extension == "svg":
				contentType = "image/svg+xml"
			}
			if contentType == "" {
				continue
			}
			body := read(dir + "/" + f.Name())
			a.files[f.Name()] = asset{newContent(body, `W/"`+hash(body)+`"`, gzip.BestCompression), contentType}
			all = append(all, []byte(f.Name()), body)
		}
	}
	a.folder = "assets/" + hash(all...) + "/"
	openapi := read("openapi.json")
	a.openapi = newContent(openapi, `W/"`+hash(openapi)+`"`, gzip.BestCompression)
	var page bytes.Buffer
	if err := template.Must(template.ParseFS(files, "page.html")).Execute(&page, pageData{b, a.folder}); err != nil {
		panic(err) // it is embedded, and fits pageData
	}
	a.page = newContent(page.Bytes(), `W/"`+hash(page.Bytes())+`"`, gzip.BestCompression)
	return a
}

func read(name string) []byte {
	body, err := files.ReadFile(strings.TrimPrefix(name, "./"))
	if err != nil {
		panic(err) // embedded above
	}
	return body
}

// serve answers with the asset of that name. One of another release, asked for while
// instances are replaced one by one, is not to be had: this one's is sent, and not kept.
func (a *assets) serve(w http.ResponseWriter, r *http.Request, name string) {
	w.Header().Set("Cache-Control", "private, no-cache")
	if strings.HasSuffix("/"+r.URL.Path, "/"+a.folder+name) {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	f := a.files[name]
	f.send(w, r, f.contentType)
}
