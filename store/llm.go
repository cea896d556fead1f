package store

import (
	"strings"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
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
//	error.llm.<failed>             why (error.type)
//
// The model is gen_ai.request.model. Tokens of 0 make no counter. A number that cannot
// be (negative, beyond 2^53−1, more cached than sent, more reasoning than came back) is
// left out alone: the others count, Stats.Invalid does, and the log says it once.
//
// Dots in Failed become "_", so reasons that differ in those alone are one. Of a reason
// longer than 64 bytes, as an error's text may be, counts what stands before its first
// colon, 64 bytes at most.
func (s *Store) AddLLM(c LLMCall) {
	model := c.Model
	if model == "" {
		model = "unknown"
	}
	stem := "llm." + naming.Escape(model) + "."
	s.Inc(stem + "calls")
	if c.Failed != "" {
		s.Inc(stem + "failed")
		s.Inc("error.llm." + reason(c.Failed))
	}
	input, output := s.part(stem, "input_tokens", c.Input, counter.Max), s.part(stem, "output_tokens", c.Output, counter.Max)
	if sum := min(input+output, counter.Max); sum > 0 {
		s.Add(stem+"tokens", sum)
	}
	s.part(stem, "cached_tokens", c.Cached, input)
	s.part(stem, "reasoning_tokens", c.Reasoning, output)
}

// part counts n tokens, of most that there can be, and returns how many it counted.
func (s *Store) part(stem, measure string, n, most int64) int64 {
	if n == 0 {
		return 0
	}
	if n < 0 || n > most {
		s.Add(stem+measure, -1) // which is refused, and counted
		if s != nil {
			s.oddOnce.Do(func() {
				go s.survives(func() { // a request may be waiting
					s.log.Warn("usagekit: a call of a model has a number of tokens that cannot be, which is left out: is it mapped as the doc of LLMCall says?", "counter", stem+measure, "n", n, "most", most)
				})
			})
		}
		return 0
	}
	s.Add(stem+measure, n)
	return n
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
