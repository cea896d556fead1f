package store

import (
	"strings"

	"github.com/usagekit/usagekit/internal/counter"
)

// LLMCall is one call of a large language model, as its provider's answer tells:
//
//	            OpenAI (chat completions; responses)              Anthropic
//	Input       prompt_tokens; input_tokens                       input_tokens + cache_read_input_tokens + cache_creation_input_tokens
//	Output      completion_tokens; output_tokens                  output_tokens
//	Cached      prompt_tokens_details.cached_tokens;              cache_read_input_tokens
//	            input_tokens_details.cached_tokens
//	Reasoning   completion_tokens_details.reasoning_tokens;       not told apart
//	            output_tokens_details.reasoning_tokens
//
// OpenAI's input holds the cached tokens, Anthropic's does not: there, add them. A
// stream tells its usage at the end (OpenAI: with stream_options.include_usage); one
// that was aborted before is a call without tokens, or with those that the
// application has counted itself.
type LLMCall struct {
	Model     string // "": unknown
	Input     int64  // tokens that were sent, those from a cache among them
	Output    int64  // tokens that came back, those of reasoning among them
	Cached    int64  // part of Input
	Reasoning int64  // part of Output
	Failed    string // why it failed, in a word: "timeout", "rate_limit"; "": it did not
}

// AddLLM counts a call, as Add does, beside the OpenTelemetry GenAI attribute of the
// same meaning:
//
//	llm.<model>.calls
//	llm.<model>.tokens             input and output
//	llm.<model>.input_tokens       gen_ai.usage.input_tokens
//	llm.<model>.output_tokens      gen_ai.usage.output_tokens
//	llm.<model>.cached_tokens      gen_ai.usage.cache_read.input_tokens
//	llm.<model>.reasoning_tokens   gen_ai.usage.reasoning.output_tokens
//	llm.<model>.failed             calls that failed, and
//	error.llm.<failed>             why (error.type); dots become _
//
// The model is gen_ai.request.model. Tokens of 0 make no counter. Numbers that cannot
// be (negative, beyond 2^53−1, more cached than sent, more reasoning than came back)
// are refused as a whole: the call counts, its tokens do not, and Stats.Invalid does.
func (s *Store) AddLLM(c LLMCall) {
	model := c.Model
	switch {
	case model == "":
		model = "unknown"
	case strings.HasPrefix(model, "("):
		model = "(" + model // it cannot pretend to be a subject of usagekit's
	}
	stem := "llm." + model + "."
	s.Inc(stem + "calls")
	if c.Failed != "" {
		s.Inc(stem + "failed")
		s.Inc("error.llm." + strings.ReplaceAll(c.Failed, ".", "_"))
	}
	if min(c.Input, c.Output, c.Cached, c.Reasoning) < 0 || c.Cached > c.Input || c.Reasoning > c.Output || c.Input > counter.Max-c.Output {
		s.Add(stem+"tokens", -1) // which is refused, and counted
		return
	}
	for _, t := range []struct {
		measure string
		n       int64
	}{
		{"tokens", c.Input + c.Output},
		{"input_tokens", c.Input},
		{"output_tokens", c.Output},
		{"cached_tokens", c.Cached},
		{"reasoning_tokens", c.Reasoning},
	} {
		if t.n > 0 {
			s.Add(stem+t.measure, t.n)
		}
	}
}
