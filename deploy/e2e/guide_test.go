//go:build e2e && unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"manta/internal/processtest"
)

// curl runs a command as the seed guide prints it, but for the port.
func curl(t *testing.T, line string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), processtest.Patience)
	defer stop()
	line = strings.ReplaceAll(line, "http://localhost:8000", strings.Replace(shared.url, "127.0.0.1", "localhost", 1))
	line = strings.ReplaceAll(line, "http://localhost:9090", strings.Replace(shared.metrics, "127.0.0.1", "localhost", 1))
	cmd := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(line, "curl ", "curl -sS --fail --noproxy '*' "))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// decode wants exactly the fields of a value.
func decode(t *testing.T, text string, value any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

type generated struct {
	Text   *string `json:"generated_text"`
	Tokens *int    `json:"num_tokens"`
}

// check allows an empty text: a sampled answer may end at once.
func (g *generated) check(t *testing.T, most int) {
	t.Helper()
	if g.Text == nil || g.Tokens == nil {
		t.Fatal("an answer without its text or its tokens")
	}
	if *g.Tokens < 1 || *g.Tokens > most {
		t.Errorf("not 1 to %d tokens: %d, %q", most, *g.Tokens, *g.Text)
	}
}

// The seed guide's own surface, by curl.
func TestSeedGuide(t *testing.T) {
	var health struct{ Status, Model string }
	decode(t, curl(t, `curl http://localhost:8000/health`), &health)
	if health.Status != "healthy" || health.Model != *realModel {
		t.Errorf("health: %+v", health)
	}
	var one generated
	decode(t, curl(t, `curl -X POST http://localhost:8000/generate \
  -H "Content-Type: application/json" \
  -d '{"prompt": "What is machine learning?", "max_tokens": 20, "temperature": 0.7}'`), &one)
	one.check(t, 20)
	one = generated{}
	decode(t, curl(t, `curl -X POST http://localhost:8000/generate -d '{"prompt": "The sea", "max_tokens": 8, "temperature": 0.8,
		"top_p": 0.95, "top_k": 50, "presence_penalty": 0, "frequency_penalty": 0}'`), &one)
	one.check(t, 8)
	for _, form := range []string{"%", `{"requests": %}`} {
		var many struct{ Results []generated }
		list := `[{"prompt": "Hello", "max_tokens": 4, "temperature": 0}, {"prompt": "The sky is", "max_tokens": 9}, {"prompt": "Hello", "max_tokens": 4, "temperature": 0}]`
		decode(t, curl(t, `curl -X POST http://localhost:8000/batch-generate -H "Content-Type: application/json" -d '`+strings.Replace(form, "%", list, 1)+`'`), &many)
		if len(many.Results) != 3 {
			t.Fatalf("%d results", len(many.Results))
		}
		for i, most := range []int{4, 9, 4} {
			many.Results[i].check(t, most)
		}
		if *many.Results[0].Text == "" || *many.Results[0].Text != *many.Results[2].Text {
			t.Errorf("one greedy request, two answers: %q and %q", *many.Results[0].Text, *many.Results[2].Text)
		}
	}
	if text := curl(t, `curl http://localhost:9090/metrics | grep vllm`); !strings.Contains(text, "vllm_requests_total") {
		t.Errorf("metrics by curl: %s", text)
	}
}

// What `manta up` prints works when pasted.
func TestPrintedCommands(t *testing.T) {
	var chat struct { // sampled: its text may be empty
		Choices []struct{ Message struct{ Content *string } }
	}
	text := curl(t, `curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "`+*realModel+`", "messages": [{"role": "user", "content": "Hello!"}]}'`)
	if err := json.Unmarshal([]byte(text), &chat); err != nil || len(chat.Choices) != 1 || chat.Choices[0].Message.Content == nil {
		t.Errorf("%v: %s", err, text)
	}
}

// Errors have OpenAI's shape and name the field.
func TestErrorsNameTheField(t *testing.T) {
	for name, c := range map[string]struct {
		path   string
		body   object
		status int
		param  string
	}{
		"no prompt":      {"/generate", object{"max_tokens": 4}, 400, "prompt"},
		"tokens":         {"/generate", object{"prompt": "a", "max_tokens": -1}, 400, "max_tokens"},
		"in a batch":     {"/batch-generate", object{"requests": []object{{"prompt": "a", "max_tokens": 1}, {"prompt": "a", "temperature": -2}}}, 400, "requests[1].temperature"},
		"too long":       {"/v1/completions", object{"prompt": "a", "max_tokens": 1 << 20}, 400, "max_tokens"},
		"model":          {"/v1/completions", object{"prompt": "a", "model": "other"}, 404, "model"},
		"suffix":         {"/v1/completions", object{"prompt": "a", "suffix": "b"}, 400, "suffix"},
		"response form":  {"/v1/chat/completions", object{"messages": []object{{"role": "user", "content": "a"}}, "response_format": object{"type": "json_object"}}, 400, "response_format"},
		"forced tools":   {"/v1/chat/completions", object{"messages": []object{{"role": "user", "content": "a"}}, "tools": []object{{"type": "function", "function": object{"name": "f"}}}, "tool_choice": "required"}, 400, "tool_choice"},
		"top_p, a type":  {"/v1/completions", object{"prompt": "a", "top_p": "much"}, 400, "top_p"},
		"choices":        {"/v1/completions", object{"prompt": "a", "n": 0}, 400, "n"},
		"no such path":   {"/v1/nothing", object{}, 404, ""},
		"wrong method":   {"/health", object{}, 405, ""},
		"prompt's token": {"/v1/completions", object{"prompt": []int{1 << 30}}, 400, "prompt"},
	} {
		t.Run(name, func(t *testing.T) {
			status, data, err := shared.ask(t.Context(), c.path, c.body)
			if err != nil {
				t.Fatal(err)
			}
			var body struct {
				Error struct {
					Message, Type string
					Param         *string
					Code          int
				}
			}
			decode(t, string(data), &body)
			param := ""
			if body.Error.Param != nil {
				param = *body.Error.Param
			}
			if e := body.Error; status != c.status || e.Code != c.status || param != c.param || e.Message == "" || e.Type == "" {
				t.Errorf("status %d (want %d, field %q): %s", status, c.status, c.param, data)
			}
		})
	}
}

// Dashboards made for vLLM and the guide's PromQL find their names, on the API's
// port and on the one for metrics alone.
func TestMetricNames(t *testing.T) {
	if _, err := shared.streamed(t.Context(), "/v1/completions", story(4)); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{shared.url, shared.metrics} {
		processtest.Eventually(t, func() error { return named(t.Context(), url) })
	}
}

// named tells which of those names a server lacks. They come once the answer's end and
// the engine's report have.
func named(ctx context.Context, url string) error {
	status, text, err := get(ctx, url+"/metrics")
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("%s: %d, %v", url, status, err)
	}
	for _, name := range []string{
		"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
		"vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
		"vllm:request_success_total",
	} {
		if _, found := metric(text, name, `model_name="`+*realModel+`"`); !found {
			return fmt.Errorf("%s lacks %s", url, name)
		}
	}
	for _, name := range []string{ // with a value after one answer
		"vllm:time_to_first_token_seconds_bucket", "vllm:time_to_first_token_seconds_count",
		"vllm:inter_token_latency_seconds_bucket", "vllm:inter_token_latency_seconds_sum",
		"vllm:e2e_request_latency_seconds_bucket", "vllm:request_queue_time_seconds_count",
		"vllm:request_inference_time_seconds_count", "vllm:request_prefill_time_seconds_sum",
		"vllm:request_decode_time_seconds_sum", "vllm:request_prompt_tokens_sum",
		"vllm:request_generation_tokens_sum", "vllm:request_params_max_tokens_sum", "vllm:request_params_n_sum",
		"vllm:prompt_tokens_total", "vllm:generation_tokens_total",
		"vllm_requests_total", "vllm_request_latency_seconds_bucket", "vllm_request_latency_seconds_sum",
		"vllm_request_latency_seconds_count", "vllm_tokens_generated_total",
		"manta_engine_blocks", "manta_engine_steps_total", "go_goroutines",
	} {
		if value, found := metric(text, name); !found || value <= 0 {
			return fmt.Errorf("%s: %s is %v", url, name, value)
		}
	}
	return nil
}
