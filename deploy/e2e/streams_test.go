//go:build e2e && unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptrace"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// request is one of many that differ.
type request struct {
	path string
	body object
	cut  int // leave at this event, 0: before there is any; -1: stay
}

var words = strings.Fields(`the old lighthouse keeper wrote a letter about seven ships that never came
home while rain fell on grey stones and children asked why water is salt but rivers are not`)

// mixed makes the i-th of many requests: all kinds of parameters, lengths and
// manners of leaving.
func mixed(i int) request {
	draw := rand.New(rand.NewPCG(3, uint64(i)))
	var prompt strings.Builder
	if i%3 == 0 { // some have a prefix in common, longer than a block
		prompt.WriteString(strings.Repeat("Once upon a time there was a small town by the sea. ", 3))
	}
	for range 1 + draw.IntN(1+draw.IntN(60)) {
		prompt.WriteString(words[draw.IntN(len(words))] + " ")
	}
	body := object{"model": *realModel, "max_tokens": 2 + draw.IntN(6+draw.IntN(20)), "temperature": 0}
	set := func(more object) {
		for name, value := range more {
			body[name] = value
		}
	}
	chat := false
	switch i % 8 {
	case 0: // greedy
	case 1:
		chat = true
		set(object{"temperature": 1, "top_p": 0.9, "seed": i})
	case 2:
		set(object{"presence_penalty": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.2})
	case 3:
		chat = true
		set(object{"temperature": 0.7, "seed": i, "stop": []string{".", " the", "e"}})
	case 4:
		set(object{"temperature": 1.1, "seed": -i, "n": 2})
	case 5:
		set(object{"logprobs": 3})
	case 6:
		chat = true
		set(object{"temperature": 1.3, "top_k": 40, "min_p": 0.02, "seed": i, "logprobs": true, "top_logprobs": 2})
	case 7:
		set(object{"temperature": 1, "seed": i, "ignore_eos": true, "min_tokens": 2, "stop": []string{"a"},
			"include_stop_str_in_output": true, "logit_bias": object{"28": 2.5, "30": -100}})
	}
	r := request{path: "/v1/completions", body: body, cut: -1}
	if chat {
		r.path = "/v1/chat/completions"
		body["messages"] = []object{{"role": "user", "content": prompt.String()}}
	} else {
		body["prompt"] = prompt.String()
	}
	if (i+i/8)%4 == 0 {
		r.cut = draw.IntN(4)
	}
	return r
}

// Of 64 streams at once, with clients that leave in the middle, each answer
// equals the one that the same request gets alone and whole; and nothing stays.
func TestManyStreamsAtOnce(t *testing.T) {
	const streams = 64
	s := shared
	if _, err := s.whole(t.Context(), "/v1/completions", mixed(0).body); err != nil {
		t.Fatal(err)
	}
	goroutines := s.metric(t, "go_goroutines")
	succeeded := s.metric(t, "vllm_requests_total", `status="success"`)
	answers, failures := make([]*answer, streams), make([]error, streams)
	var clients sync.WaitGroup
	for i := range streams {
		clients.Go(func() { answers[i], failures[i] = s.play(t, mixed(i)) })
	}
	clients.Wait()
	s.idle(t, goroutines)
	if s.metric(t, "manta_engine_blocks_cached") == 0 {
		t.Error("no block is cached")
	}
	stayed := 0
	for i := range streams {
		r := mixed(i)
		if r.cut >= 0 {
			if err := failures[i]; err != nil && !errors.Is(err, errEnough) && !errors.Is(err, context.Canceled) {
				t.Errorf("request %d, which leaves: %v", i, err)
			}
			continue
		}
		stayed++
		if failures[i] != nil {
			t.Errorf("request %d: %v", i, failures[i])
			continue
		}
		alone, err := s.whole(t.Context(), r.path, r.body)
		if err != nil {
			t.Errorf("request %d alone: %v", i, err)
			continue
		}
		if n, _ := r.body["n"].(int); len(alone.Choices) != max(n, 1) || alone.Tokens == 0 || alone.Choices[0].Finish == "" {
			t.Errorf("request %d alone: %+v", i, alone)
		}
		if _, asked := r.body["logprobs"]; asked && len(alone.Choices[0].Logprobs) != alone.Tokens {
			t.Errorf("request %d alone: %d logprobs of %d tokens", i, len(alone.Choices[0].Logprobs), alone.Tokens)
		}
		if !reflect.DeepEqual(answers[i], alone) {
			t.Errorf("request %d %v: together\n%+v\nalone\n%+v", i, r.body, answers[i], alone)
		}
	}
	s.idle(t, goroutines)
	if got := s.metric(t, "vllm_requests_total", `status="success"`) - succeeded; got < float64(2*stayed) {
		t.Errorf("%v requests succeeded by the metrics, at least %d did", got, 2*stayed)
	}
}

// play asks for a stream, and leaves when the request's client does.
func (s *server) play(t *testing.T, r request) (*answer, error) {
	if r.cut < 0 {
		return s.streamed(t.Context(), r.path, r.body)
	}
	ctx := t.Context()
	if r.cut == 0 {
		sent, leave := context.WithCancel(ctx)
		defer leave()
		ctx = httptrace.WithClientTrace(sent, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { leave() }})
	}
	seen := 0
	err := s.stream(ctx, r.path, streaming(r.body), func(event) error {
		if seen++; seen >= r.cut {
			return fmt.Errorf("%w after %d events", errEnough, seen)
		}
		return nil
	})
	return nil, err
}
