package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// body reads the whole body within the limits on its size and time.
func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, &Error{
			Status: http.StatusUnsupportedMediaType, Type: "BadRequestError", Param: "Content-Encoding",
			Message: fmt.Sprintf("Content-Encoding %s is not supported: send the body as it is", coding),
		}
	}
	control := http.NewResponseController(w)
	// A recorder in a test has no deadlines; a real connection does.
	_ = control.SetReadDeadline(time.Now().Add(s.limits.BodyTime))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.limits.BodyBytes))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &Error{
			Status: http.StatusRequestEntityTooLarge, Type: "BadRequestError",
			Message: fmt.Sprintf("the body is larger than %d bytes", large.Limit),
		}
	case err != nil:
		return nil, badField("", "the body could not be read: %v", err)
	}
	_ = control.SetReadDeadline(time.Time{})
	return data, nil
}

// read takes the body's JSON object.
func (s *Server) read(w http.ResponseWriter, r *http.Request, into any) error {
	data, err := s.body(w, r)
	if err != nil {
		return err
	}
	return parse(data, into)
}

// parse decodes a JSON object into a request, and names the field that does not fit.
func parse(data []byte, into any) error {
	return decode(data, json.NewDecoder(bytes.NewReader(data)), into)
}

// parseStrict is parse, and refuses fields that the request does not have.
func parseStrict(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return decode(data, decoder, into)
}

func decode(data []byte, decoder *json.Decoder, into any) error {
	if !utf8.Valid(data) {
		return badField("", "the body is not valid UTF-8")
	}
	err := decoder.Decode(into)
	var wrong *json.UnmarshalTypeError
	var broken *json.SyntaxError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		// encoding/json names the struct that a field is embedded from.
		field := strings.TrimPrefix(wrong.Field, "sampling.")
		of := field
		if field == "metadata" && wrong.Type.Kind() == reflect.String {
			of = "every value of metadata"
		}
		return badField(field, "%s must be %s, not %s", of, jsonKind(wrong.Type.Kind()), wrong.Value)
	case errors.As(err, &wrong):
		return badField("", "the body must be a JSON object, not %s", wrong.Value)
	case errors.As(err, &broken):
		return badField("", "the body is not JSON: %v at byte %d", broken, broken.Offset)
	case errors.Is(err, io.EOF):
		return badField("", "the body is empty; it must be a JSON object")
	case err != nil:
		if _, name, unknown := strings.Cut(err.Error(), "unknown field "); unknown {
			name = strings.Trim(name, `"`)
			return badField(name, "there is no field %s here", name)
		}
		return badField("", "the body is not JSON: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return badField("", "the body has more than one JSON value")
	}
	return nil
}

// absent reports whether a raw field was not given, or given as null.
func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// decodeField decodes a field that has several forms.
func decodeField[T any](field string, raw json.RawMessage, form string) (T, error) {
	var value T
	if err := json.Unmarshal(raw, &value); err != nil {
		return value, badField(field, "%s must be %s", field, form)
	}
	return value, nil
}

// stringOrList decodes what may be one string or several.
func stringOrList(field string, raw json.RawMessage) ([]string, error) {
	if absent(raw) {
		return nil, nil
	}
	if raw[0] == '"' {
		one, err := decodeField[string](field, raw, "a string or a list of strings")
		return []string{one}, err
	}
	return decodeField[[]string](field, raw, "a string or a list of strings")
}

func digest(data []byte) [32]byte { return sha256.Sum256(data) }
