package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/singleflight"

	"manta/head/dispatch"
	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/chat"
	"manta/runtime/token"
)

// StoreTexts makes Texts from what the store holds, once for each tokenizer and
// template. It is safe for concurrent use.
type StoreTexts struct {
	blobs  dispatch.Blobs
	flight singleflight.Group

	mu    sync.Mutex
	texts map[textKey]*Text // guarded by mu
}

type textKey struct{ tokenizer, template state.Digest }

// maxTexts bounds the tokenizers in memory; a large one takes tens of megabytes.
const maxTexts = 32

var _ Texts = (*StoreTexts)(nil)

// NewStoreTexts makes an empty cache over a store.
func NewStoreTexts(blobs dispatch.Blobs) *StoreTexts {
	return &StoreTexts{blobs: blobs, texts: map[textKey]*Text{}}
}

// Text gives a deployment's text, from the cache when it is there.
func (t *StoreTexts) Text(ctx context.Context, deployment state.Deployment) (*Text, error) {
	key := textKey{deployment.Tokenizer, deployment.Template}
	t.mu.Lock()
	text, ok := t.texts[key]
	t.mu.Unlock()
	if ok {
		return text, nil
	}
	made, err, _ := t.flight.Do(string(key.tokenizer[:])+string(key.template[:]), func() (any, error) {
		// Others wait for this one: it must not end with the first client's request.
		text, err := t.load(context.WithoutCancel(ctx), deployment)
		if err != nil {
			return nil, fmt.Errorf("deployment %s: %w", deployment.Name, err)
		}
		t.keep(key, text)
		return text, nil
	})
	if err != nil {
		return nil, err
	}
	return made.(*Text), nil
}

// keep adds a text; when there are too many, any other goes.
func (t *StoreTexts) keep(key textKey, text *Text) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for other := range t.texts {
		if len(t.texts) < maxTexts {
			break
		}
		delete(t.texts, other)
	}
	t.texts[key] = text
}

func (t *StoreTexts) load(ctx context.Context, deployment state.Deployment) (*Text, error) {
	data, err := t.blobs.Blob(ctx, deployment.Tokenizer)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	var source token.Source
	if err := wire.Unmarshal(data, &source); err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	tokenizer, err := token.New(source)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	text := &Text{Tokenizer: tokens{tokenizer}, Vocabulary: tokenizer.Size(), EndToken: -1}
	if vocabulary := deployment.Shapes.Vocab; vocabulary > 0 {
		// Logits beyond the tokenizer's own pad the matrix; ids there are no tokens.
		text.Vocabulary = min(text.Vocabulary, vocabulary)
	}
	if end, ok := tokenizer.EOS(); ok {
		text.EndToken = end
	}
	if deployment.Template == (state.Digest{}) {
		return text, nil
	}
	if data, err = t.blobs.Blob(ctx, deployment.Template); err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	template, err := chat.Parse(string(data))
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	text.Template = newTemplate(template, tokenizer)
	return text, nil
}

// tokens is a token.Tokenizer whose decoders are dispatch's.
type tokens struct{ *token.Tokenizer }

var _ dispatch.Tokenizer = tokens{}

func (t tokens) NewDecoder(skipSpecial bool, prompt []int32) dispatch.Decoder {
	return t.Tokenizer.NewDecoder(skipSpecial, prompt)
}

// template is a chat.Template with its model's special tokens.
type template struct {
	parsed   *chat.Template
	bos, eos string
}

func newTemplate(parsed *chat.Template, tokenizer *token.Tokenizer) template {
	t := template{parsed: parsed}
	if id, ok := tokenizer.BOS(); ok {
		t.bos = string(tokenizer.Bytes(id))
	}
	if id, ok := tokenizer.EOS(); ok {
		t.eos = string(tokenizer.Bytes(id))
	}
	return t
}

// ReadsTools implements Template.
func (t template) ReadsTools() bool { return t.parsed.ReadsTools() }

// Render renders with the model's special tokens.
func (t template) Render(c Conversation) (string, error) {
	return t.parsed.Render(chat.Request{
		Messages: c.Messages, Tools: c.Tools, Documents: c.Documents,
		AddGenerationPrompt: c.AddGenerationPrompt, ContinueFinalMessage: c.ContinueFinalMessage,
		Kwargs: c.Kwargs, BOS: t.bos, EOS: t.eos, Now: c.Now,
	})
}

// badConversation makes of a template's error one that names the field.
func badConversation(err error) *Error {
	if errors.Is(err, chat.ErrRequest) {
		message := strings.TrimPrefix(err.Error(), chat.ErrRequest.Error()+": ")
		field, _, _ := strings.Cut(message, " ")
		return badField(strings.TrimSuffix(field, ":"), "%s", message)
	}
	return badField("messages", "%v", err)
}
