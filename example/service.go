package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/usagekit/usagekit/store"
)

const model = "storyteller-1"

// service is the application. All it has to do with usagekit is to count what
// its middleware cannot see: features, registrations, tokens, errors.
type service struct {
	usage *store.Store

	mu     sync.Mutex
	novels int
}

func newService(usage *store.Store) *service { return &service{usage: usage} }

func (s *service) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users", s.register)
	mux.HandleFunc("POST /novels", s.createNovel)
	mux.HandleFunc("GET /novels/{id}", s.novel)
	mux.HandleFunc("POST /writer/chapters", s.feature("feature.chapter.written"))
	mux.HandleFunc("POST /writer/outlines", s.feature("feature.outline.generated"))
	mux.HandleFunc("POST /llm/complete", s.complete)
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

// complete asks a model that is none: it answers at once, with tokens to count.
func (s *service) complete(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("fail") == "timeout" {
		s.usage.Inc("error.llm.timeout")
		reply(w, http.StatusGatewayTimeout, map[string]string{"error": "the model did not answer in time"})
		return
	}
	prompt, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		reply(w, http.StatusRequestEntityTooLarge, map[string]string{"error": "the prompt is too long"})
		return
	}
	input := int64(len(strings.Fields(string(prompt)))) + 1
	const text = "It was a dark and stormy night; the rain fell in torrents."
	output := int64(len(strings.Fields(text)))
	s.usage.Inc("llm." + model + ".calls")
	s.usage.Add("llm."+model+".input_tokens", input)
	s.usage.Add("llm."+model+".output_tokens", output)
	s.usage.Add("llm."+model+".tokens", input+output)
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
