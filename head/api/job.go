package api

import (
	"crypto/rand"
	"encoding/binary"
	"net/http"
	"time"

	"manta/head/dispatch"
	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/sample"
)

// job is one HTTP request for text, checked and tokenized: n choices of each of
// its prompts.
type job struct {
	model    *served
	id       wire.RequestID
	created  int64
	prompts  []prompt
	params   sample.Params
	n        int
	priority int
	owner    [32]byte
	caller   *caller
	session  string
	body     [32]byte
	arrived  time.Time         // for its trace; zero: now
	from     trace.Context     // of the client
	resume   *dispatch.EventID // nil: from the start

	stream     bool
	usage      bool
	continuous bool
	tokensAsID bool
	tokenIDs   bool
}

type prompt struct {
	text   string
	tokens []int32
}

// sessionHeader names a session: its requests go to one replica if they can.
const sessionHeader = "X-Session-Id"

// behindClients is added to the priority of a batch's lines: clients wait, batches
// do not.
const behindClients = 100

// newJob takes what the two forms of request share.
func newJob(r *http.Request, model *served, f *sampling, data []byte, params sample.Params) (*job, error) {
	n, err := f.choices()
	if err != nil {
		return nil, err
	}
	j := &job{
		model: model, created: time.Now().Unix(), params: params, n: n,
		owner: by(r.Context()).hash, caller: by(r.Context()), session: r.Header.Get(sessionHeader), body: digest(data),
		stream: f.Stream, tokensAsID: f.TokensAsIDs, tokenIDs: f.ReturnTokenIDs,
	}
	j.arrived, _ = r.Context().Value(arrivedKey{}).(time.Time)
	j.from = trace.Context{Parent: r.Header.Get("Traceparent"), State: r.Header.Get("Tracestate")}
	if j.priority = f.Priority; j.caller.name != "" {
		j.priority = max(j.priority, j.caller.limits.Priority)
	}
	if j.caller.line != nil {
		j.priority += behindClients
	}
	if f.StreamOptions != nil {
		j.usage = f.StreamOptions.IncludeUsage || f.StreamOptions.ContinuousUsage
		j.continuous = f.StreamOptions.ContinuousUsage
	}
	// crypto/rand.Read never fails.
	_, _ = rand.Read(j.id[:])
	if j.params.Seed = model.Settings.Seed; f.Seed != nil {
		j.params.Seed = params.Seed
	} else if j.caller.line != nil {
		j.params.Seed = *j.caller.line
	} else if model.Settings.Seed == 0 {
		var seed [8]byte
		_, _ = rand.Read(seed[:])
		j.params.Seed = binary.LittleEndian.Uint64(seed[:])
	}
	return j, nil
}

// goOn makes the job the continuation of the stream that Last-Event-ID names.
// The id must be one given to the same key for the same body.
func (j *job) goOn(r *http.Request) error {
	text := r.Header.Get("Last-Event-ID")
	if text == "" || !j.stream {
		return nil
	}
	id, err := dispatch.ParseEventID(text)
	if err != nil {
		return err
	}
	if id.Check != dispatch.Check(id.Request, id.Seed, j.owner, j.body) || len(id.Choices) != j.n*len(j.prompts) {
		return dispatch.ErrNotFound
	}
	j.id, j.params.Seed, j.resume = id.Request, id.Seed, &id
	return nil
}

// fit checks prompts against the model's length and settles max_tokens, in
// vLLM's words. A limit of 0 means the rest of the context.
func (j *job) fit(limit int, field string) error {
	longest := 0
	for _, p := range j.prompts {
		if len(p.tokens) == 0 {
			return badField(field, "the prompt is empty")
		}
		longest = max(longest, len(p.tokens))
	}
	length := j.model.length
	if longest >= length {
		return badField(field, "This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the input messages.", length, longest)
	}
	if limit > length-longest {
		return badField("max_tokens", "'max_tokens' or 'max_completion_tokens' is too large: %d. This model's maximum context length is %d tokens and your request has %d input tokens (%d > %d - %d).", limit, length, longest, limit, length, longest)
	}
	j.params.MaxTokens = limit
	if limit == 0 {
		j.params.MaxTokens = length - longest
	}
	return j.params.Check(j.model.text.Vocabulary)
}

// plain reports whether there is nothing to an event but its text.
func (j *job) plain(e *dispatch.Event) bool {
	return e.Text != "" && e.Finish == wire.Unfinished && j.params.Logprobs < 0 && !j.tokenIDs
}
