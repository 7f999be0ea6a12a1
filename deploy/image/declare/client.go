package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	maxAnswer   = 1 << 20
	callTimeout = 10 * time.Minute // a head asks a node, which may read from the hub
)

// errRefused says that asking again would not help.
var errRefused = errors.New("the head refuses it")

// client asks the heads until one answers.
type client struct {
	base, key string
	pause     time.Duration // between two attempts
	out       io.Writer
	said      string // the last reason for waiting that was printed
}

// state is what is needed of GET /api/cluster/deployments/NAME.
type state struct {
	Wanted   int `json:"replicas"`
	Ready    int `json:"ready"`
	Replicas []struct {
		Phase  string `json:"phase"`
		Reason string `json:"reason"`
	} `json:"replica_states"`
}

// declare puts the deployment, again and again while no head can take it.
func (c *client) declare(ctx context.Context, body []byte) error {
	return c.until(ctx, func(ctx context.Context) (string, error) {
		_, why, err := c.ask(ctx, http.MethodPost, "/api/cluster/deployments", body)
		return why, err
	})
}

// ready waits until a replica answers, or none is wanted.
func (c *client) ready(ctx context.Context, name string) error {
	return c.until(ctx, func(ctx context.Context) (string, error) {
		data, why, err := c.ask(ctx, http.MethodGet, "/api/cluster/deployments/"+url.PathEscape(name), nil)
		if err != nil || why != "" {
			return why, err
		}
		var s state
		if err := json.Unmarshal(data, &s); err != nil {
			return "", fmt.Errorf("the head's answer is not a deployment: %w", err)
		}
		if s.Ready > 0 || s.Wanted == 0 {
			return "", nil
		}
		why = "no replica is placed yet: free devices or memory are missing, or no node has joined"
		for _, r := range s.Replicas {
			why = "a replica is " + r.Phase
			if r.Reason != "" {
				why += ": " + r.Reason
			}
		}
		return why, nil
	})
}

// until tries until there is no reason left to wait, or an error.
func (c *client) until(ctx context.Context, try func(context.Context) (string, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	why := "nothing was tried"
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; it waited because %s", ctx.Err(), why)
		case <-timer.C:
		}
		reason, err := try(ctx)
		if err != nil || reason == "" {
			return err
		}
		if ctx.Err() != nil {
			continue // the end is no reason to wait
		}
		if why = reason; why != c.said {
			fmt.Fprintln(c.out, "waiting:", why)
			c.said = why
		}
		timer.Reset(c.pause)
	}
}

// ask gives the answer, or why to ask again, or an error that stays.
func (c *client) ask(ctx context.Context, method, path string, body []byte) (data []byte, why string, err error) {
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", fmt.Errorf("--url: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err.Error(), nil
	}
	defer response.Body.Close()
	data, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, err.Error(), nil
	}
	switch status := response.StatusCode; {
	case status < 300:
		return data, "", nil
	case status == http.StatusNotFound && method == http.MethodGet:
		return nil, "the head asked has not applied it yet", nil
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		return nil, message(status, data), nil
	default:
		return nil, "", fmt.Errorf("%w: %s", errRefused, message(status, data))
	}
}

// message is what the answer says for itself.
func message(status int, data []byte) string {
	var answer struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(data, &answer) == nil && answer.Error.Message != "" {
		return fmt.Sprintf("%s (%d)", answer.Error.Message, status)
	}
	return fmt.Sprintf("the server answered %d %s", status, http.StatusText(status))
}
