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

// accept takes a frame's tokens. It gives an event when there is something that
// the client lacks. A gap between frames is a fault, not a guess.
func (c *choice) accept(frame *wire.Frame) (*Event, error) {
	if frame.Offset != len(c.tokens) {
		return nil, fmt.Errorf("%w: choice %d has %d tokens, the frame begins at %d",
			errFault, c.index, len(c.tokens), frame.Offset)
	}
	logprobs := c.params.Logprobs >= 0
	if logprobs && len(frame.Logprobs) != len(frame.Tokens) {
		return nil, fmt.Errorf("%w: choice %d: %d logprobs for %d tokens",
			errFault, c.index, len(frame.Logprobs), len(frame.Tokens))
	}
	event := &Event{Choice: c.index}
	var text []byte
	for i, token := range frame.Tokens {
		c.tokens = append(c.tokens, token)
		last := i == len(frame.Tokens)-1 && frame.Finish == wire.FinishStop
		piece, stop := c.push(token, last)
		if fresh := len(c.tokens) > c.seen.Tokens; fresh {
			text = append(text, piece...)
			event.Tokens = append(event.Tokens, token)
			if logprobs {
				event.Logprobs = append(event.Logprobs, frame.Logprobs[i])
			}
		}
		if stop != "" {
			c.finished, c.finish = true, wire.FinishStop
			event.StopString = stop
			break
		}
		if last && c.finish == wire.FinishStop && !c.isEnd(token) {
			event.StopToken = &token
		}
	}
	if !c.finished && frame.Finish != wire.Unfinished {
		c.finished, c.finish = true, frame.Finish
		// The end of the text comes with the end of the choice, so a client that
		// has seen the end has this, and one that has not lacks it.
		piece, stop := c.stops.push(c.decoder.Flush(), c.mayEnd())
		text = append(text, piece...)
		if stop != "" {
			c.finish, event.StopString = wire.FinishStop, stop
		} else {
			text = append(text, c.stops.flush()...)
		}
	}
	event.Text, event.Offset, event.Finish = string(text), len(c.tokens), c.finish
	if !c.finished && len(c.tokens) <= c.seen.Tokens {
		return nil, nil
	}
	if c.finished && c.seen.Ended {
		return nil, nil
	}
	return event, nil
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
