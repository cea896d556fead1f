// Package llm counts calls of large language models, and the tokens that they took.
//
//	calls := llm.New(usage)
//	calls.Add(llm.Call{Model: "gpt-5.1", Input: 1117, Output: 446, Cached: 1024, Reasoning: 320})
//
// Each call counts in the usual way, beside the OpenTelemetry GenAI attribute of the
// same meaning:
//
//	llm.<model>.calls
//	llm.<model>.tokens             input and output
//	llm.<model>.input_tokens       gen_ai.usage.input_tokens
//	llm.<model>.output_tokens      gen_ai.usage.output_tokens
//	llm.<model>.cached_tokens      gen_ai.usage.cache_read.input_tokens
//	llm.<model>.reasoning_tokens   gen_ai.usage.reasoning.output_tokens
//	llm.<model>.failed             calls that failed, and
//	error.llm.<failed>             why (error.type)
//
// The model is gen_ai.request.model.
package llm

import (
	"strings"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
)

// Recorder counts: a *store.Store, or whatever a test wants. It refuses what is
// negative or beyond 2^53−1, as a Store does.
type Recorder interface {
	Add(name string, n int64)
}

// Calls counts calls with a Recorder. Its method may be called from any number of
// goroutines.
type Calls struct{ rec Recorder }

// New returns what counts with rec. A nil rec counts nothing.
func New(rec Recorder) *Calls { return &Calls{rec: rec} }

// Call is one call of a large language model, as its provider's answer tells:
//
//	            OpenAI (chat completions; responses)              Anthropic
//	Input       prompt_tokens; input_tokens                       input_tokens + cache_read_input_tokens + cache_creation_input_tokens
//	Output      completion_tokens; output_tokens                  output_tokens
//	Cached      prompt_tokens_details.cached_tokens;              cache_read_input_tokens
//	            input_tokens_details.cached_tokens
//	Reasoning   completion_tokens_details.reasoning_tokens;       not told apart
//	            output_tokens_details.reasoning_tokens
//
//	            Gemini                                            xAI (chat completions)
//	Input       promptTokenCount + toolUsePromptTokenCount        prompt_tokens
//	Output      candidatesTokenCount + thoughtsTokenCount         completion_tokens + completion_tokens_details.reasoning_tokens
//	Cached      cachedContentTokenCount                           prompt_tokens_details.cached_tokens
//	Reasoning   thoughtsTokenCount                                completion_tokens_details.reasoning_tokens
//
// OpenAI's input holds the cached tokens, Anthropic's does not: there, add them. OpenAI's
// output holds those of reasoning, Gemini's and xAI's does not: there, add those. Then
// Input and Output are what the bill has. A stream tells its usage at the end (OpenAI:
// with stream_options.include_usage); one that was aborted before is a call without
// tokens, or with those that the application has counted itself.
type Call struct {
	Model     string // "": unknown
	Input     int64  // tokens that were sent, those from a cache among them
	Output    int64  // tokens that came back, those of reasoning among them
	Cached    int64  // part of Input
	Reasoning int64  // part of Output
	Failed    string // why it failed, in a word: "timeout", "rate_limit"; "": it did not
}

// Add counts a call. Tokens of 0 make no counter. A number that cannot be (negative,
// beyond 2^53−1, more cached than sent, more reasoning than came back) is left out
// alone: the others count, the store's Stats.Invalid does, and its log says it once.
//
// Dots in Failed become "_", so reasons that differ in those alone are one. Of a reason
// longer than 64 bytes, as an error's text may be, counts what stands before its first
// colon, 64 bytes at most.
func (c *Calls) Add(call Call) {
	if c == nil || c.rec == nil {
		return
	}
	model := call.Model
	if model == "" {
		model = "unknown"
	}
	stem := "llm." + naming.Escape(model) + "."
	c.rec.Add(stem+"calls", 1)
	if call.Failed != "" {
		c.rec.Add(stem+"failed", 1)
		c.rec.Add("error.llm."+reason(call.Failed), 1)
	}
	input, output := c.part(stem+"input_tokens", call.Input, counter.Max), c.part(stem+"output_tokens", call.Output, counter.Max)
	if sum := min(input+output, counter.Max); sum > 0 {
		c.rec.Add(stem+"tokens", sum)
	}
	c.part(stem+"cached_tokens", call.Cached, input)
	c.part(stem+"reasoning_tokens", call.Reasoning, output)
}

// part counts n tokens, of most that there can be, and returns how many it counted. The
// Recorder is handed what cannot be, too, as a number that it refuses, and reports.
func (c *Calls) part(name string, n, most int64) int64 {
	switch {
	case n == 0:
		return 0
	case 0 < n && n <= most:
		c.rec.Add(name, n)
		return n
	case most < n && n <= counter.Max:
		n = most - n // what is missing of the whole
	}
	c.rec.Add(name, n)
	return 0
}

// reason is a measure made of why a call failed.
func reason(failed string) string {
	const most = naming.MaxPart
	failed = strings.ReplaceAll(failed, ".", "_")
	if len(failed) <= most {
		return failed
	}
	if i := strings.IndexByte(failed, ':'); i > 0 {
		failed = failed[:i]
	}
	if len(failed) > most {
		k := most
		for k > 0 && !utf8.RuneStart(failed[k]) {
			k--
		}
		failed = failed[:k]
	}
	return failed
}
