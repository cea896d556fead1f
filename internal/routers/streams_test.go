package routers

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gin-gonic/gin"
	gorilla "github.com/gorilla/websocket"

	"github.com/usagekit/usagekit/middleware"
)

// limit is how long anything may take; only a failing test waits for it.
const limit = 3 * time.Minute

// Two libraries' websockets that send back what they are sent.
var sockets = map[string]http.HandlerFunc{
	"coder": func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // it has answered
		}
		defer c.CloseNow()
		for {
			kind, message, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, message) != nil {
				return
			}
		}
	},
	"gorilla": func(w http.ResponseWriter, r *http.Request) {
		c, err := (&gorilla.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, message, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, message) != nil {
				return
			}
		}
	},
}

// A websocket is counted when it opens, once, and its length is no latency.
func TestWebsocket(t *testing.T) {
	for library, socket := range sockets {
		for name, r := range routers {
			if library == "coder" && name == "echo, compressing" {
				continue // echo's Gzip keeps the 101 to itself, with this middleware or without
			}
			t.Run(library+" "+name, func(t *testing.T) {
				srv, rec, serving := serve(t, false, func(count func(http.Handler) http.Handler) http.Handler { return r.with(count, socket) })
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				c, resp, err := websocket.Dial(ctx, srv.URL+"/novels/1", &websocket.DialOptions{HTTPHeader: http.Header{"X-User": {"7"}}})
				if err != nil {
					t.Fatal(err)
				}
				defer c.CloseNow()
				if resp.StatusCode != http.StatusSwitchingProtocols {
					t.Errorf("status %d", resp.StatusCode)
				}
				for _, sent := range []string{"once", "upon", "a time"} {
					if err := c.Write(ctx, websocket.MessageText, []byte(sent)); err != nil {
						t.Fatal(err)
					}
					if _, got, err := c.Read(ctx); string(got) != sent || err != nil {
						t.Errorf("sent %q, got %q, %v", sent, got, err)
					}
				}
				rec.check(t, once(r.route, "status_1xx")) // while it is open
				if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
					t.Error(err)
				}
				serving.Wait()
				rec.check(t, once(r.route, "status_1xx"))
			})
		}
	}
}

// A websocket that is refused is a request like others.
func TestNoWebsocket(t *testing.T) {
	for library, socket := range sockets {
		srv, rec, serving := serve(t, false, func(count func(http.Handler) http.Handler) http.Handler { return withServeMux(count, socket) })
		if resp := get(t, srv, "/novels/1"); resp.StatusCode/100 != 4 {
			t.Errorf("%s: %d", library, resp.StatusCode)
		}
		serving.Wait()
		rec.check(t, once("GET /novels/{id}", "status_4xx", "latency"))
	}
}

// Events arrive one by one, through every router's own ResponseWriter; they are
// counted from the first, and how long they went on is no latency.
func TestEvents(t *testing.T) {
	next := make(chan struct{})
	wait := func(r *http.Request) {
		select {
		case <-next:
		case <-r.Context().Done(): // whoever reads gave up
		}
	}
	events := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data:%d\n\n", i)
			w.(http.Flusher).Flush()
			wait(r)
		}
	}
	all := maps.Clone(routers)
	gins := all["gin"]
	gins.with = func(count func(http.Handler) http.Handler, _ http.HandlerFunc) http.Handler {
		g := gin.New()
		g.Use(func(c *gin.Context) { middleware.SetRoute(c.Writer, c.FullPath()) })
		g.GET("/novels/:id", func(c *gin.Context) {
			i := 0
			c.Stream(func(io.Writer) bool { // asks for CloseNotify
				if i > 0 {
					wait(c.Request)
				}
				if i < 3 {
					c.SSEvent("", i)
				}
				i++
				return i <= 3
			})
		})
		return count(g)
	}
	all["gin, Stream"] = gins
	for name, r := range all {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", name, http2), func(t *testing.T) {
				srv, rec, serving := serve(t, http2, func(count func(http.Handler) http.Handler) http.Handler { return r.with(count, events) })
				resp := get(t, srv, "/novels/1")
				if (resp.ProtoMajor == 2) != http2 {
					t.Fatal(resp.Proto)
				}
				lines := bufio.NewScanner(resp.Body)
				for i := range 3 {
					for lines.Scan() && lines.Text() == "" {
					}
					if want := fmt.Sprintf("data:%d", i); lines.Text() != want {
						t.Fatalf("%q instead of %q, %v", lines.Text(), want, lines.Err())
					}
					rec.check(t, once(r.route, "status_2xx")) // while it goes on
					next <- struct{}{}
				}
				for lines.Scan() {
					if lines.Text() != "" {
						t.Errorf("after the last: %q", lines.Text())
					}
				}
				serving.Wait()
				rec.check(t, once(r.route, "status_2xx"))
				if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
					t.Errorf("Content-Type %q", got)
				}
			})
		}
	}
}
