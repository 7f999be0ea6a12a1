package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/state"
)

// until waits for a condition that other goroutines bring about.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not come", what)
		}
	}
}

// The seed guide's endpoints work word for word.
func TestSeedGuide(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("fine")
	status, _, text := b.do("POST", "/generate", `{"prompt": "How are you?"}`)
	if status != 200 || text != `{"generated_text":"fine","num_tokens":5}` {
		t.Errorf("%d %s", status, text)
	}
	p := b.cluster.Requests()[0].Params
	if p.MaxTokens != 512 || p.Temperature != 0.8 || p.TopP != 0.95 || p.TopK != 50 || p.PresencePenalty != 0 {
		t.Errorf("defaults %+v", p)
	}
	const results = `{"results":[{"generated_text":"fin","num_tokens":3},{"generated_text":"fine","num_tokens":5}]}`
	list := `[{"prompt":"a","max_tokens":3},{"prompt":"b","temperature":0}]`
	for _, body := range []string{list, `{"requests": ` + list + `}`} {
		if status, _, text := b.do("POST", "/batch-generate", body); status != 200 || text != results {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	for body, param := range map[string]string{
		`{}`: "requests", `[{"prompt":"a"},{}]`: "requests[1].prompt", `[{"prompt":"a","top_p":2}]`: "requests[0].top_p",
	} {
		if status, _, text := b.do("POST", "/batch-generate", body); status != 400 || !strings.Contains(text, `"param":"`+param+`"`) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	if status, _, text := b.do("POST", "/batch-generate", `[]`); status != 200 || text != `{"results":[]}` {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := b.do("GET", "/health", ""); status != 200 || text != `{"status":"healthy","model":"m"}` {
		t.Errorf("%d %s", status, text)
	}
}

// /health says whether a model can generate, /readyz whether this head can
// queue, /livez neither.
func TestHealth(t *testing.T) {
	var blocked error
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.CanQueue = func() error { return blocked } })
	b.cluster.Update(func(v *state.View) {
		r := v.Replicas["r1"]
		r.Phase, r.Reason = state.Loading, "3 of 4 GB"
		v.Replicas["r1"] = r
	})
	if status, _, text := b.do("GET", "/health", ""); status != 503 || !strings.Contains(text, "loading: 3 of 4 GB") {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := b.do("GET", "/health?model=other", ""); status != 503 || !strings.Contains(text, "no such model") {
		t.Errorf("%d %s", status, text)
	}
	b.cluster.Update(func(v *state.View) {
		delete(v.Replicas, "r1")
		d := v.Deployments["m"]
		d.Replicas = 0
		v.Deployments["m"] = d
	})
	if status, _, text := b.do("GET", "/health", ""); status != 503 || !strings.Contains(text, "scaled to 0") {
		t.Errorf("%d %s", status, text)
	}
	if status, _, _ := b.do("GET", "/readyz", ""); status != 200 {
		t.Errorf("readyz: %d", status)
	}
	blocked = errors.New("no leader")
	if status, _, text := b.do("GET", "/readyz", ""); status != 503 || !strings.Contains(text, "no leader") {
		t.Errorf("readyz: %d %s", status, text)
	}
	if status, _, _ := b.do("GET", "/livez", ""); status != 200 {
		t.Errorf("livez: %d", status)
	}
}

// Tokenizing and detokenizing are vLLM's.
func TestTokenize(t *testing.T) {
	b := newBench(t, nil)
	for body, want := range map[string]string{
		`{"prompt":"ab"}`: `{"count":3,"max_model_len":4096,"tokens":[256,97,98],"token_strs":null}`,
		`{"prompt":"ab","add_special_tokens":false,"return_token_strs":true}`:     `{"count":2,"max_model_len":4096,"tokens":[97,98],"token_strs":["a","b"]}`,
		`{"messages":[{"role":"u","content":"a"}],"add_generation_prompt":false}`: `{"count":5,"max_model_len":4096,"tokens":[117,58,32,97,10],"token_strs":null}`,
	} {
		if status, _, text := b.do("POST", "/tokenize", body); status != 200 || text != want {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	if status, _, text := b.do("POST", "/detokenize", `{"tokens":[97,98]}`); status != 200 || text != `{"prompt":"ab"}` {
		t.Errorf("%d %s", status, text)
	}
	for path, body := range map[string]string{"/tokenize": `{}`, "/detokenize": `{"tokens":[999]}`} {
		if status, _, text := b.do("POST", path, body); status != 400 {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

// Keys are demanded everywhere but where probes look; browsers may ask.
func TestKeys(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(name, []byte("# ours\nalpha\n\n beta \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, off, err := NewKeys([]string{"@" + name, "gamma"})
	if err != nil || off {
		t.Fatal(off, err)
	}
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Keys, c.Metrics = keys, http.NotFoundHandler() })
	for _, path := range []string{"/health", "/livez", "/readyz", "/metrics"} {
		if status, _, _ := b.do("GET", path, ""); status == 401 {
			t.Errorf("%s demands a key", path)
		}
	}
	for _, path := range []string{"/v1/models", "/version", "/api/cluster", "/nothing"} {
		if status, header, _ := b.do("GET", path, ""); status != 401 || header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s without a key: %d", path, status)
		}
	}
	for key, want := range map[string]int{"alpha": 200, "beta": 200, "gamma": 200, "delta": 401, "": 401, "# ours": 401} {
		if status, _, _ := b.do("GET", "/v1/models", "", "Authorization", "Bearer "+key); status != want {
			t.Errorf("key %q: %d, want %d", key, status, want)
		}
	}
	status, header, _ := b.do("OPTIONS", "/v1/chat/completions", "", "Origin", "http://x", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "authorization")
	if status != 200 || header.Get("Access-Control-Allow-Origin") != "*" || header.Get("Access-Control-Allow-Headers") != "authorization" {
		t.Errorf("preflight: %d %v", status, header)
	}
}

// Whoever listens beyond loopback has a key, or says none by name.
func TestKeysAreDemandedBeyondLoopback(t *testing.T) {
	none, off, err := NewKeys([]string{"none"})
	if err != nil || none != nil || !off {
		t.Fatal(none, off, err)
	}
	some, _, err := NewKeys([]string{"k"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keys    *Keys
		off     bool
		address string
		ok      bool
	}{
		{nil, false, "127.0.0.1:8000", true}, {nil, false, "[::1]:8000", true}, {nil, false, "localhost:1", true},
		{nil, false, "0.0.0.0:8000", false}, {nil, false, ":8000", false}, {nil, false, "10.0.0.1:8000", false},
		{nil, true, "0.0.0.0:8000", true}, {some, false, "0.0.0.0:8000", true},
	} {
		if err := c.keys.Demanded(c.address, c.off); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, bad := range [][]string{{"none", "k"}, {""}, {"@/no/such/file"}} {
		if _, _, err := NewKeys(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// What is not there is answered in OpenAI's shape, with a request id.
func TestUnknownPathsAndMethods(t *testing.T) {
	b := newBench(t, nil)
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/nothing", 404}, {"GET", "/v1/completions", 405}, {"POST", "/v1/models", 405}, {"GET", "/v1/models/x", 404}, {"POST", "/v1/embeddings", 404}} {
		status, header, text := b.do(c.method, c.path, "", "X-Request-Id", "mine")
		var answer errorBody
		if err := json.Unmarshal([]byte(text), &answer); err != nil || status != c.status || answer.Error.Message == "" {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
		}
		if header.Get("X-Request-Id") != "mine" {
			t.Errorf("request id %q", header.Get("X-Request-Id"))
		}
		if c.path == "/v1/embeddings" && !strings.Contains(text, "there are /v1/models") {
			t.Errorf("a client of OpenAI's is not told what there is: %s", text)
		}
	}
	if status, _, text := b.do("GET", "/v1/models/", ""); status != 200 || !strings.Contains(text, `"id":"m"`) {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := b.do("POST", "/v1/completions", "\x1f\x8b", "Content-Encoding", "gzip"); status != 415 || !strings.Contains(text, "gzip") {
		t.Errorf("%d %s", status, text)
	}
	if _, header, text := b.do("GET", "/v1/models/m", ""); header.Get("X-Request-Id") == "" || !strings.Contains(text, `"max_model_len":4096`) {
		t.Errorf("%v %s", header, text)
	}
}

// A body beyond the limit is refused.
func TestBodyLimit(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Limits.BodyBytes = 100 })
	if status, _, text := b.do("POST", "/v1/completions", strings.Repeat(" ", 200)); status != 413 {
		t.Errorf("%d %s", status, text)
	}
}

// The bodies of all requests in progress are bounded together: what is beyond is
// refused before it is read, and room comes back with each end.
func TestHeldBytesLimit(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Limits.BodyBytes, c.Limits.HeldBytes = 1000, 1500 })
	b.cluster.Script = dispatchtest.Say("ok")
	b.cluster.Step = 10 * time.Millisecond // the first holds its bytes for half a minute
	large := func(tokens int) string {
		return fmt.Sprintf(`{"prompt":"%s","max_tokens":%d,"ignore_eos":true,"stream":true}`, strings.Repeat("x", 850), tokens)
	}
	first := b.open("POST", "/v1/completions", large(3000))
	if status, header, text := b.do("POST", "/v1/completions", large(1)); status != 429 || header.Get("Retry-After") != "1" {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := b.do("POST", "/v1/completions", `{"prompt":"x"}`); status != 200 {
		t.Errorf("a small one: %d %s", status, text)
	}
	first.Body.Close()
	until(t, "room for another", func() bool {
		status, _, _ := b.do("POST", "/v1/completions", large(1))
		return status == 200
	})
}

// Too much work gives 429 with Retry-After once the queue is full; what was
// admitted is answered, and whoever goes away leaves the queue.
func TestOverload(t *testing.T) {
	b := newBench(t, func(_ *Config, d *dispatch.Config) { d.MaxQueue = 2 })
	b.cluster.Script = dispatchtest.Say("ok")
	b.cluster.Update(func(v *state.View) {
		delete(v.Replicas, "r1")
		v.Deployments["m"] = state.Deployment{Name: "m", Settings: state.Settings{MaxModelLen: 99}}
	})
	var clients sync.WaitGroup
	answers := make(chan string, 2)
	for range 2 {
		clients.Go(func() {
			response, err := b.client.Post(b.URL+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"x"}`))
			if err != nil {
				answers <- err.Error()
				return
			}
			defer response.Body.Close()
			var answer textCompletion
			if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || len(answer.Choices) != 1 {
				answers <- fmt.Sprint(response.Status, err)
				return
			}
			answers <- answer.Choices[0].Text
		})
	}
	until(t, "a full queue", func() bool {
		_, _, text := b.do("GET", "/api/cluster/deployments/m", "")
		return strings.Contains(text, `"waiting":2`)
	})
	if status, header, text := b.do("POST", "/v1/completions", `{"prompt":["y","z"]}`); status != 429 || header.Get("Retry-After") == "" {
		t.Errorf("%d %v %s", status, header, text)
	}
	b.cluster.AddReplica("m", "r2", "n2", 1, 8)
	clients.Wait()
	for range 2 {
		if text := <-answers; text != "ok" {
			t.Errorf("an admitted request got %q", text)
		}
	}
}

// A client that goes away is taken off its driver.
func TestDisconnectCancels(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Step = 10 * time.Millisecond
	for _, stream := range []bool{true, false} {
		ctx, stop := context.WithCancel(t.Context())
		body := fmt.Sprintf(`{"prompt":"x","max_tokens":4000,"stream":%v}`, stream)
		request, err := http.NewRequestWithContext(ctx, "POST", b.URL+"/v1/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() {
			response, err := b.client.Do(request)
			if err == nil {
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			gone <- err
		}()
		until(t, "the request at the driver", func() bool { return b.cluster.Running() == 1 })
		stop()
		if err := <-gone; err == nil {
			t.Error("the client was not cut off")
		}
		until(t, "the cancel", func() bool { return b.cluster.Running() == 0 })
	}
}

// A client that does not read is cut off, and its request with it. Small buffers
// in the kernel make that soon.
func TestSlowReaderIsDisconnected(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Limits.WriteTime = 50 * time.Millisecond })
	b.cluster.Step = 5 * time.Millisecond
	server := httptest.NewUnstartedServer(b.Config.Handler)
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetWriteBuffer(4096); err != nil {
			t.Error(err)
		}
		return withConnection(ctx, c)
	}
	server.Start()
	defer server.Close()
	connection, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if err := connection.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	// What the driver gives by itself would take it 20 s and be 1 MB.
	body := `{"prompt":"x","max_tokens":4000,"ignore_eos":true,"stream":true}`
	fmt.Fprintf(connection, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	// It may be over between two looks: what stays is that the driver was told.
	until(t, "the cancel", func() bool { return len(b.cluster.Cancelled()) > 0 && b.cluster.Running() == 0 })
	if cancels := b.cluster.Cancelled(); len(cancels) != 1 {
		t.Errorf("the driver was told %d times, want once", len(cancels))
	}
}

// A stream that goes on for longer than a client may take for one piece ends as any
// other does, with its last chunk.
func TestLongStreamEnds(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Limits.WriteTime = time.Second })
	b.cluster.Step = 20 * time.Millisecond
	response := b.open("POST", "/v1/completions", `{"prompt":"x","max_tokens":60,"ignore_eos":true,"stream":true}`)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || !bytes.HasSuffix(data, []byte("data: [DONE]\n\n")) {
		t.Errorf("%v, …%s", err, data[max(0, len(data)-100):])
	}
}

// A stream that is silent carries comments, so that nothing gives up on it.
func TestHeartbeat(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Limits.Heartbeat = 5 * time.Millisecond })
	b.cluster.Step = 100 * time.Millisecond
	response := b.open("POST", "/v1/completions", `{"prompt":"x","max_tokens":3,"stream":true}`)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Contains(data, []byte(": waiting\n\n")) || !bytes.HasSuffix(data, []byte("data: [DONE]\n\n")) {
		t.Errorf("%v, %s", err, data)
	}
}

// A failure inside a stream is an event; before it, a status.
func TestStreamFailures(t *testing.T) {
	b := newBench(t, func(c *Config, _ *dispatch.Config) {
		c.Limits.WaitTime, c.Limits.Heartbeat = time.Second, 5*time.Millisecond // the stream has begun long before
	})
	b.cluster.Kill("n1")
	b.cluster.Update(func(v *state.View) {
		v.Deployments["m"] = state.Deployment{Name: "m", Settings: state.Settings{MaxModelLen: 99}}
	})
	all := chunks(t, b.streamed("/v1/completions", `{"prompt":"x","stream":true}`))
	if len(all) != 1 || all[0].Error == nil || all[0].Error.Code != 503 {
		t.Errorf("%+v", all)
	}
	status, header, text := b.do("POST", "/v1/completions", `{"prompt":"x"}`)
	if status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("%d %s", status, text)
	}
}

// Serve drains: what is in progress ends, what is new is refused.
func TestServeDrains(t *testing.T) {
	cluster := dispatchtest.New()
	defer cluster.Close()
	cluster.Step = time.Millisecond
	dispatcher := dispatch.New(dispatch.Config{Head: "h", Views: cluster, Link: cluster, Meter: dispatchtest.Meter{}})
	cluster.Attach(dispatcher)
	cluster.AddReplica("m", "r1", "n1", 1, 8)
	server := New(Config{Views: cluster, Texts: fakeTexts{fakeText(t)}, Dispatch: dispatcher})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener, 10*time.Second) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	url := "http://" + listener.Addr().String()
	response, err := client.Post(url+"/v1/completions", "", strings.NewReader(`{"prompt":"x","max_tokens":60,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stop()
	until(t, "draining", dispatcher.Draining)
	ready, err := client.Get(url + "/readyz")
	if err == nil { // a new connection may already be refused
		ready.Body.Close()
		if ready.StatusCode != 503 {
			t.Errorf("readyz while draining: %d", ready.StatusCode)
		}
	}
	data, err := io.ReadAll(response.Body)
	if err != nil || !bytes.HasSuffix(data, []byte("data: [DONE]\n\n")) {
		t.Errorf("the stream in progress: %v, %s", err, data)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

type fakeControl struct {
	view       func(func(*state.View))
	leaderless bool
	waiting    []Waiting
	behind     func() // what the leader has that this head lacks
}

func (f *fakeControl) Leader() string { return "head-0" }

func (f *fakeControl) Fresh(context.Context) error {
	if f.leaderless {
		return ErrNoLeader
	}
	if f.behind != nil {
		f.behind()
	}
	return nil
}

// A head that has just started does not say «no such model» before it has caught
// up: it asks the leader first, and without one says so.
func TestHeadBehindCatchesUp(t *testing.T) {
	control := &fakeControl{leaderless: true}
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Cluster = control })
	var known state.Deployment
	b.cluster.Update(func(v *state.View) {
		known = v.Deployments["m"]
		delete(v.Deployments, "m")
	})
	body := `{"model":"m","prompt":"hi","max_tokens":1}`
	if status, header, text := b.do("POST", "/v1/completions", body); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("behind, without a leader: %d %v %s", status, header, text)
	}
	control.leaderless = false
	control.behind = func() { b.cluster.Update(func(v *state.View) { v.Deployments["m"] = known }) }
	if status, _, text := b.do("POST", "/v1/completions", body); status != 200 {
		t.Errorf("behind, with a leader: %d %s", status, text)
	}
	if status, _, text := b.do("POST", "/v1/completions", `{"model":"other","prompt":"hi"}`); status != 404 {
		t.Errorf("a model that nobody has: %d %s", status, text)
	}
}

func (f *fakeControl) Deploy(_ context.Context, d state.Deployment) (state.Deployment, error) {
	if d.Model == "bad" {
		return d, badField("model", "no such model")
	}
	f.view(func(v *state.View) { v.Deployments[d.Name] = d })
	return d, nil
}

func (f *fakeControl) Change(_ context.Context, change state.Change) (err error) {
	f.view(func(v *state.View) {
		var next *state.View
		if next, err = v.Apply(v.Index+1, state.Command{Changes: []state.Change{change}}); err == nil {
			*v = *next
		}
	})
	return err
}

func (f *fakeControl) Waiting(context.Context) ([]Waiting, error) { return f.waiting, nil }

// Deployments are created, listed, shown and deleted over HTTP.
func TestClusterAPI(t *testing.T) {
	control := &fakeControl{}
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Cluster = control })
	control.view = b.cluster.Update
	created := post[Deployment](b, "/api/cluster/deployments", `{"name":"org/x","model":"hf:org/x","tensor_parallel_size":2}`, 201)
	if created.Name != "org/x" || created.Tensor != 2 || created.Pipeline != 1 || created.Wanted != 1 {
		t.Errorf("%+v", created)
	}
	if status, _, text := b.do("GET", "/api/cluster/deployments/org/x", ""); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	control.leaderless = true
	if status, header, text := b.do("GET", "/api/cluster/deployments/org/x", ""); status != 200 || header.Get("X-Manta-Stale") != "true" {
		t.Errorf("without a leader: %d %v %s; want what this head knows, marked stale", status, header, text)
	}
	control.leaderless = false
	if status, _, text := b.do("DELETE", "/api/cluster/deployments/org/x", ""); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if status, _, _ := b.do(method, "/api/cluster/deployments/org/x", ""); status != 404 {
			t.Errorf("%s of a deleted one: %d", method, status)
		}
	}
	for body, param := range map[string]string{
		`{}`: "model", `{"model":"x","replicas":-1}`: "replicas", `{"model":"x","tensor_parallel_size":-2}`: "tensor_parallel_size", `{"model":"bad"}`: "model",
	} {
		if status, _, text := b.do("POST", "/api/cluster/deployments", body); status != 400 || !strings.Contains(text, `"param":"`+param+`"`) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	_, _, text := b.do("GET", "/api/cluster", "")
	var cluster ClusterState
	if err := json.Unmarshal([]byte(text), &cluster); err != nil || len(cluster.Deployments) != 1 || cluster.Deployments[0].Ready != 1 {
		t.Errorf("%v %s", err, text)
	}
}
