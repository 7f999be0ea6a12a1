package dispatch

import (
	"fmt"

	"manta/node/wire"
	"manta/runtime/sample"
)

// choice turns one choice's frames into events. What it gives after the first t
// tokens depends on those tokens alone, never on how frames cut them: so a
// resumed stream goes on at the very character where the old one stopped.
type choice struct {
	index    int
	params   *sample.Params
	decoder  Decoder
	stops    stopMatcher
	tokens   []int32 // all of this choice's output, what a resumed client has included
	seen     Seen
	finished bool
	finish   wire.FinishReason
}

func newChoice(index int, request *Request) *choice {
	c := &choice{
		index:   index,
		params:  &request.Params,
		decoder: request.Tokenizer.NewDecoder(!request.Params.KeepSpecial, request.Prompt),
		stops:   stopMatcher{stops: request.Params.Stops, include: request.Params.IncludeStop},
	}
	if request.Seen != nil {
		c.seen = request.Seen[index]
	}
	return c
}

// accept takes a frame's tokens. It gives an event that is fresh when there is something
// that the client lacks. A gap between frames is a fault, not a guess.
func (c *choice) accept(frame *wire.Frame) (event Event, fresh bool, err error) {
	if frame.Offset != len(c.tokens) {
		return event, false, fmt.Errorf("%w: choice %d has %d tokens, the frame begins at %d",
			errFault, c.index, len(c.tokens), frame.Offset)
	}
	logprobs := c.params.Logprobs >= 0
	if logprobs && len(frame.Logprobs) != len(frame.Tokens) {
		return event, false, fmt.Errorf("%w: choice %d: %d logprobs for %d tokens",
			errFault, c.index, len(frame.Logprobs), len(frame.Tokens))
	}
	event.Choice = c.index
	from := min(max(c.seen.Tokens-frame.Offset, 0), len(frame.Tokens)) // the client has those before
	to := len(frame.Tokens)
	for i, token := range frame.Tokens {
		c.tokens = append(c.tokens, token)
		last := i == len(frame.Tokens)-1 && frame.Finish == wire.FinishStop
		piece, stop := c.push(token, last)
		if i >= from {
			event.Text += piece // mostly the frame's only one: that is no copy
		}
		if stop != "" {
			c.finished, c.finish = true, wire.FinishStop
			event.StopString, to = stop, i+1
			break
		}
		if last && c.finish == wire.FinishStop && !c.isEnd(token) {
			event.StopToken = &frame.Tokens[i]
		}
	}
	if from < to {
		event.Tokens = frame.Tokens[from:to:to]
		if logprobs {
			event.Logprobs = frame.Logprobs[from:to:to]
		}
	}
	if !c.finished && frame.Finish != wire.Unfinished {
		c.finished, c.finish = true, frame.Finish
		// The end of the text comes with the end of the choice, so a client that
		// has seen the end has this, and one that has not lacks it.
		piece, stop := c.stops.push(c.decoder.Flush(), c.mayEnd())
		event.Text += piece
		if stop != "" {
			c.finish, event.StopString = wire.FinishStop, stop
		} else {
			event.Text += c.stops.flush()
		}
	}
	event.Offset, event.Finish = len(c.tokens), c.finish
	if c.finished {
		return event, !c.seen.Ended, nil
	}
	return event, len(c.tokens) > c.seen.Tokens, nil
}

// push decodes one token. The token that ends the choice is no text, unless the
// client asked for it.
func (c *choice) push(token int32, ends bool) (text, stop string) {
	if ends {
		c.finish = wire.FinishStop
		if !c.params.IncludeStop {
			return "", ""
		}
	}
	return c.stops.push(c.decoder.Push(token), c.mayEnd())
}

// mayEnd tells whether a stop string may end the choice at its newest token.
func (c *choice) mayEnd() bool { return len(c.tokens) > c.params.MinTokens }

// isEnd tells the model's own end tokens from stop_token_ids.
func (c *choice) isEnd(token int32) bool {
	if c.params.IgnoreEOS {
		return false
	}
	for _, end := range c.params.EndTokens {
		if end == token {
			return true
		}
	}
	return false
}
