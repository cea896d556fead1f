package dashboard

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	maxParts   = 32                     // of a batch
	maxAsked   = 16 << 10               // bytes of one's query
	maxBatch   = 4 << 20                // bytes of what they answer
	batchWaits = 900 * time.Millisecond // for the slowest of them
)

// batchPart is one answer of a batch. Its status is what its own address would have
// answered, or else 202, for it takes longer than the others may wait, or 413, for there
// is no room left: both can be had by that address.
type batchPart struct {
	Status int             `json:"status"`
	ETag   string          `json:"etag,omitempty"`
	Took   int64           `json:"took_ms,omitempty"` // to read it
	Body   json.RawMessage `json:"body,omitempty"`
}

// serveBatch gives several answers at once. All of them are read at the same time, and
// none waits for another for longer than a moment.
func (h *handler) serveBatch(w http.ResponseWriter, r *http.Request) {
	p := h.params(r)
	p.only("q")
	asked := p.list("q")
	switch {
	case len(asked) == 0:
		p.fail("batch needs q: what to ask, as in q=stats&q=series%%3Frange%%3D24h")
	case len(asked) > maxParts:
		p.fail("q is given %d times, %d at most", len(asked), maxParts)
	}
	if p.err != nil {
		failRead(w, r, p.err)
		return
	}
	waits := make([]waiting, len(asked))
	for i, q := range asked {
		waits[i] = h.part(p, q)
	}
	ctx, cancel := context.WithTimeout(r.Context(), batchWaits)
	defer cancel()
	have := r.Header.Get("If-None-Match")
	var tags strings.Builder
	parts, room, same := make([]batchPart, len(waits)), maxBatch, true
	for i, wait := range waits {
		parts[i] = answerPart(ctx, wait, have, &room)
		same = same && parts[i].Status == http.StatusNotModified
		fmt.Fprintln(&tags, parts[i].ETag)
		if parts[i].ETag == "" {
			fmt.Fprintln(&tags, parts[i].Status, string(parts[i].Body))
		}
	}
	tag := `W/"` + hash([]byte(tags.String())) + `"`
	w.Header().Set("Cache-Control", "private, no-cache")
	if same || matches(have, tag) {
		w.Header().Set("ETag", tag)
		w.Header().Set("Vary", "Accept-Encoding")
		write(w, r, http.StatusNotModified, "", nil)
		return
	}
	newContent(marshal(map[string][]batchPart{"answers": parts}), tag, gzip.BestSpeed).send(w, r, typeJSON)
}

// part begins to read what q asks: the path below api/, and its query.
func (h *handler) part(p *params, q string) waiting {
	path, query, _ := strings.Cut(q, "?")
	answer, ok := h.answersOf()[path]
	if !ok {
		return refused(errNothing)
	}
	of := &params{zone: p.zone}
	of.parse(query)
	return answer(of)
}

var errNothing = errors.New("dashboard: there is no such answer")

// answerPart waits for an answer as long as ctx, and takes its bytes off room.
func answerPart(ctx context.Context, wait waiting, have string, room *int) batchPart {
	c, err := wait(ctx)
	switch {
	case errors.Is(err, errNothing):
		return batchPart{Status: http.StatusNotFound, Body: errorBody("there is nothing here")}
	case ctx.Err() != nil && (errors.Is(err, errTimeout) || err == nil && c.late):
		return batchPart{Status: http.StatusAccepted}
	case err != nil:
		status, message := refusal(err)
		return batchPart{Status: status, Body: errorBody(message)}
	case c.etag != "" && matches(have, c.etag):
		return batchPart{Status: http.StatusNotModified, ETag: c.etag, Took: c.took.Milliseconds()}
	case len(c.plain) > *room:
		return batchPart{Status: http.StatusRequestEntityTooLarge}
	}
	*room -= len(c.plain)
	return batchPart{Status: cmp.Or(c.status, http.StatusOK), ETag: c.etag, Took: c.took.Milliseconds(), Body: c.plain}
}

func errorBody(message string) json.RawMessage { return marshal(map[string]string{"error": message}) }
