package middleware

import (
	"bytes"
	"net/http"
	"strings"
)

// isStream tells whether a response of these headers is a stream: of a type that is
// sent piece by piece for as long as somebody listens, so that its duration is no
// latency. The type alone says so: ordinary pages are flushed early or sent without
// a length, too, above all by proxies.
func isStream(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) == 0 {
		return false
	}
	switch types[0] { // what most are
	case "application/json", "application/json; charset=utf-8", "text/html; charset=utf-8", "text/plain; charset=utf-8":
		return false
	}
	mediaType, parameters, _ := strings.Cut(types[0], ";")
	mediaType = strings.TrimSpace(mediaType)
	var lower [64]byte // without an allocation
	if len(mediaType) > len(lower) {
		return false
	}
	for i := range len(mediaType) {
		b := mediaType[i]
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		lower[i] = b
	}
	switch t := lower[:len(mediaType)]; string(t) {
	case "text/event-stream", "application/x-dom-event-stream",
		"application/x-ndjson", "application/ndjson", "application/nd-json", "text/x-ndjson", "application/x-ldjson",
		"application/jsonl", "application/x-jsonl", "text/jsonl", "application/jsonlines", "application/x-jsonlines", "application/json-lines",
		"application/stream+json", "application/x-json-stream", "application/json-seq", "application/cbor-seq",
		"application/stream+x-jackson-smile", "application/stream+cbor",
		"multipart/x-mixed-replace",
		"application/vnd.amazon.eventstream",
		"application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream":
		return true
	case "multipart/mixed": // GraphQL subscriptions; a batch is none
		return contains(parameters, "subscriptionspec=")
	case "application/json", "application/yaml", "application/cbor", "application/vnd.kubernetes.protobuf":
		return parameters != "" && contains(parameters, "stream=watch") // Kubernetes
	default:
		return bytes.HasSuffix(t, []byte("+json-seq")) || bytes.HasSuffix(t, []byte("+cbor-seq")) ||
			bytes.HasPrefix(t, []byte("application/connect+")) || isGRPC(t)
	}
}

// isGRPC tells whether a media type is gRPC's or gRPC-Web's, with or without the kind of
// its messages. Calls of a single message have the same.
func isGRPC(t []byte) bool {
	rest, ok := bytes.CutPrefix(t, []byte("application/grpc"))
	if web, ok := bytes.CutPrefix(rest, []byte("-web")); ok {
		rest = bytes.TrimPrefix(web, []byte("-text"))
	}
	return ok && (len(rest) == 0 || rest[0] == '+')
}

// contains tells whether a media type's parameters have one, in any case of letters.
func contains(parameters, lower string) bool {
	return strings.Contains(strings.ToLower(parameters), lower)
}
