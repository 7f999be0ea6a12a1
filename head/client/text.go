package client

import (
	"context"
	"encoding/json"
	"fmt"
)

// Message is one turn of a chat.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Options are sampling parameters; nil means the server's default.
type Options struct {
	Temperature *float64 `json:"temperature,omitempty"`
	TopP        *float64 `json:"top_p,omitempty"`
	TopK        *int     `json:"top_k,omitempty"`
	MaxTokens   *int     `json:"max_tokens,omitempty"`
	Seed        *int64   `json:"seed,omitempty"`
	Stop        []string `json:"stop,omitempty"`
	IgnoreEOS   bool     `json:"ignore_eos,omitempty"`
}

// Usage is what a request cost.
type Usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	Details          struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// Piece is the next text of a streamed answer.
type Piece struct {
	Text   string
	Finish string // why the answer ended, with its last piece
}

// Chat streams an answer to messages.
func (c *Client) Chat(ctx context.Context, model string, messages []Message, options Options, each func(Piece) error) (Usage, error) {
	return c.text(ctx, "/v1/chat/completions", struct {
		Model    string        `json:"model,omitempty"`
		Messages []Message     `json:"messages"`
		Stream   bool          `json:"stream"`
		Usage    streamOptions `json:"stream_options"`
		Options
	}{model, messages, true, streamOptions{true}, options}, each)
}

// Complete streams a continuation of a prompt: a string, or token ids.
func (c *Client) Complete(ctx context.Context, model string, prompt any, options Options, each func(Piece) error) (Usage, error) {
	return c.text(ctx, "/v1/completions", struct {
		Model  string        `json:"model,omitempty"`
		Prompt any           `json:"prompt"`
		Stream bool          `json:"stream"`
		Usage  streamOptions `json:"stream_options"`
		Options
	}{model, prompt, true, streamOptions{true}, options}, each)
}

func (c *Client) text(ctx context.Context, path string, body any, each func(Piece) error) (Usage, error) {
	var used Usage
	err := c.Stream(ctx, path, body, func(data []byte) error {
		var chunk struct {
			Choices []struct {
				Text  string `json:"text"`
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
				FinishReason string `json:"finish_reason"`
			} `json:"choices"`
			Usage *Usage `json:"usage"`
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return fmt.Errorf("a chunk of the stream is not JSON: %w", err)
		}
		if chunk.Usage != nil {
			used = *chunk.Usage
		}
		for _, choice := range chunk.Choices {
			if err := each(Piece{Text: choice.Text + choice.Delta.Content, Finish: choice.FinishReason}); err != nil {
				return err
			}
		}
		return nil
	})
	return used, err
}
