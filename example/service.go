package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/usagekit/usagekit/middleware/quota"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/llm"
)

// models are those that a completion may be asked of: the first, unless the request
// names one.
func models() []string {
	return []string{"storyteller-1", "storyteller-2", "quill-mini", "plotter-large"}
}

// service is the application. All it has to do with usagekit is to count what
// its middleware cannot see: features, registrations, tokens, errors. And it limits
// what costs money.
type service struct {
	usage       *store.Store
	calls       *llm.Calls
	completions int64 // of a user a day

	mu     sync.Mutex
	novels int
}

func newService(usage *store.Store, completions int64) *service {
	return &service{usage: usage, calls: llm.New(usage), completions: completions}
}

// userOf says who asks. A real service would have checked that.
func userOf(r *http.Request) string { return r.Header.Get("X-User") }

func (s *service) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users", s.register)
	mux.HandleFunc("POST /novels", s.createNovel)
	mux.HandleFunc("GET /novels/{id}", s.novel)
	mux.HandleFunc("POST /writer/chapters", s.feature("feature.chapter.written"))
	mux.HandleFunc("POST /writer/outlines", s.feature("feature.outline.generated"))
	mux.HandleFunc("GET /me", s.me)
	daily := quota.New(s.usage, quota.Config{
		Name:    "completions",
		Key:     userOf,
		Limit:   func(*http.Request) int64 { return s.completions },
		Reserve: 5,
	})
	mux.Handle("POST /llm/complete", daily(http.HandlerFunc(s.complete)))
	for _, section := range []string{"/site/", "/help/", "/press/", "/forum/", "/shop/"} {
		mux.HandleFunc(section+"{path...}", site)
	}
	return mux
}

func (s *service) register(w http.ResponseWriter, _ *http.Request) {
	s.usage.Inc("user.registrations")
	reply(w, http.StatusCreated, map[string]string{"status": "welcome"})
}

func (s *service) createNovel(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.novels++
	id := s.novels
	s.mu.Unlock()
	s.usage.Inc("feature.novel.started")
	reply(w, http.StatusCreated, map[string]int{"id": id})
}

func (s *service) novel(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	s.mu.Lock()
	known := err == nil && 1 <= id && id <= s.novels
	s.mu.Unlock()
	if !known {
		reply(w, http.StatusNotFound, map[string]string{"error": "there is no such novel"})
		return
	}
	reply(w, http.StatusOK, map[string]any{"id": id, "title": fmt.Sprintf("Novel %d", id)})
}

// feature answers a request that is nothing but the use of a feature.
func (s *service) feature(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s.usage.Inc(name)
		reply(w, http.StatusCreated, map[string]string{"status": "saved"})
	}
}

// me tells users how much they have asked. It is a query of the application's own.
func (s *service) me(w http.ResponseWriter, r *http.Request) {
	n, err := s.usage.Get(r.Context(), "user."+userOf(r)+".requests")
	if err != nil {
		s.usage.Inc("error.db.connection")
		reply(w, http.StatusServiceUnavailable, map[string]string{"error": "the database does not answer"})
		return
	}
	reply(w, http.StatusOK, map[string]int64{"requests": n})
}

// complete asks a model that is none: it answers at once, with tokens to count, in
// as many sentences as the request wants: 1 to 100.
func (s *service) complete(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	model := cmp.Or(query.Get("model"), models()[0])
	if !slices.Contains(models(), model) { // nobody invents names for counters
		reply(w, http.StatusBadRequest, map[string]string{"error": "there is no such model"})
		return
	}
	if query.Get("fail") == "timeout" {
		s.calls.Add(llm.Call{Model: model, Failed: "timeout"})
		reply(w, http.StatusGatewayTimeout, map[string]string{"error": "the model did not answer in time"})
		return
	}
	prompt, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		reply(w, http.StatusRequestEntityTooLarge, map[string]string{"error": "the prompt is too long"})
		return
	}
	input := int64(len(strings.Fields(string(prompt)))) + 1
	sentences, _ := strconv.Atoi(query.Get("sentences"))
	const sentence = " It was a dark and stormy night; the rain fell in torrents."
	text := strings.Repeat(sentence, min(max(sentences, 1), 100))[1:]
	output := int64(len(strings.Fields(text)))
	s.calls.Add(llm.Call{Model: model, Input: input, Output: output})
	reply(w, http.StatusOK, map[string]string{"text": text})
}

// site answers everything, whatever the method.
func site(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "A page of the site.\n")
}

func reply[T any](w http.ResponseWriter, status int, body T) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
