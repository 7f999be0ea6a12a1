package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"manta/head/dispatch"
	"manta/head/jobs"
	"manta/head/state"
	"manta/head/store"
	"manta/runtime/sample"
)

// Error is what a client sees, in OpenAI's shape with vLLM's types and codes.
type Error struct {
	Status  int
	Type    string
	Message string
	Param   string // the field at fault, if one is
	// RetryAfter is the header of that name in seconds; 0: none.
	RetryAfter int
}

func (e *Error) Error() string { return e.Message }

// Final reports whether trying the same again is of no use.
func (e *Error) Final() bool { return e.Status/100 == 4 && e.Status != http.StatusTooManyRequests }

type errorBody struct {
	Error errorFields `json:"error"`
}

type errorFields struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func (e *Error) body() errorBody {
	fields := errorFields{Message: e.Message, Type: e.Type, Code: e.Status}
	if e.Param != "" {
		fields.Param = &e.Param
	}
	return errorBody{Error: fields}
}

// badField says what is wrong with a field of the request.
func badField(field, format string, a ...any) *Error {
	return &Error{
		Status: http.StatusBadRequest, Type: "BadRequestError", Param: field,
		Message: fmt.Sprintf(format, a...),
	}
}

func unsupported(field, hint string) *Error {
	message := field + " is not supported"
	if hint != "" {
		message += ": " + hint
	}
	return &Error{Status: http.StatusBadRequest, Type: "BadRequestError", Param: field, Message: message}
}

func noModel(name string) *Error {
	return &Error{
		Status: http.StatusNotFound, Type: "NotFoundError", Param: "model",
		Message: fmt.Sprintf("The model `%s` does not exist.", name),
	}
}

func noRoom(message string) *Error {
	return &Error{Status: http.StatusInsufficientStorage, Type: "InsufficientStorageError", Message: message}
}

// clientGone is nginx's status for a client that closed its connection.
const clientGone = 499

// describe turns any error into what the client sees. Faults of ours are logged
// by the caller; their detail is not for the client.
func describe(err error) *Error {
	var known *Error
	var full *dispatch.QueueFullError
	unavailable := func(retry int) *Error {
		return &Error{Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", Message: err.Error(), RetryAfter: retry}
	}
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &full):
		return &Error{
			Status: http.StatusTooManyRequests, Type: "RateLimitError", Message: err.Error(),
			RetryAfter: int(math.Ceil(full.RetryAfter.Seconds())),
		}
	case errors.Is(err, jobs.ErrEntrypoint):
		return badField("entrypoint", "%s", err)
	case errors.Is(err, state.ErrStale):
		text := err.Error()
		if _, why, given := strings.Cut(text, state.ErrStale.Error()+": "); given {
			text = why
		}
		return &Error{Status: http.StatusConflict, Type: "ConflictError", Message: text}
	case errors.Is(err, sample.ErrParameter):
		text := strings.TrimPrefix(err.Error(), sample.ErrParameter.Error()+": ")
		field, _, _ := strings.Cut(text, " ")
		return badField(field, "%s", text)
	case errors.Is(err, dispatch.ErrInvalid):
		return badField("", "%s", err)
	case errors.Is(err, dispatch.ErrNotFound):
		return &Error{Status: http.StatusNotFound, Type: "NotFoundError", Param: "Last-Event-ID", Message: err.Error()}
	case errors.Is(err, dispatch.ErrUnknown):
		return &Error{Status: http.StatusNotFound, Type: "NotFoundError", Param: "model", Message: err.Error()}
	case errors.Is(err, state.ErrVersion):
		return &Error{Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", Message: err.Error(), RetryAfter: 30}
	case errors.Is(err, dispatch.ErrPoison):
		return &Error{Status: http.StatusInternalServerError, Type: "InternalServerError", Message: err.Error()}
	case errors.Is(err, dispatch.ErrDraining), errors.Is(err, dispatch.ErrReplica):
		return unavailable(1)
	case errors.Is(err, store.ErrFull):
		return noRoom(store.ErrFull.Error() + ": delete files (DELETE /v1/files/ID) and jobs (manta jobs delete), or give the heads more")
	case errors.Is(err, state.ErrFull):
		return noRoom(state.ErrFull.Error() + ": make room there")
	case errors.Is(err, dispatch.ErrUnavailable), errors.Is(err, ErrNoLeader), errors.Is(err, store.ErrNoMajority):
		return unavailable(5)
	case errors.Is(err, dispatch.ErrDeadline), errors.Is(err, context.DeadlineExceeded):
		return &Error{Status: http.StatusGatewayTimeout, Type: "TimeoutError", Message: "the request took longer than it may"}
	case errors.Is(err, context.Canceled), errors.Is(err, errNotTaken), errors.Is(err, dispatch.ErrSuperseded), errors.Is(err, dispatch.ErrSlowReader):
		return &Error{Status: clientGone, Type: "ClientClosedRequest", Message: err.Error()}
	}
	return &Error{Status: http.StatusInternalServerError, Type: "InternalServerError", Message: "internal error"}
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	known := describe(err)
	if known.Status == http.StatusInternalServerError || known.Status == http.StatusInsufficientStorage {
		s.log.Error("request failed", "path", r.URL.Path, "request", w.Header().Get(requestIDHeader), "error", err)
	}
	if known.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(known.RetryAfter))
	}
	if known.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	s.reply(w, known.Status, known.body())
}

// reply answers with JSON.
func (s *Server) reply(w http.ResponseWriter, status int, value any) {
	data, err := marshal(value)
	if err != nil {
		s.log.Error("answer not encoded", "error", err)
		status, data = http.StatusInternalServerError, []byte(`{"error":{"message":"internal error","type":"InternalServerError","param":null,"code":500}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	s.extend(w)
	// The client may be gone; there is no one left to tell.
	_, _ = w.Write(data)
}

// marshal encodes as JSON, with < > & as they are.
func marshal(value any) ([]byte, error) {
	var buffer strings.Builder
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(buffer.String(), "\n")), nil
}
