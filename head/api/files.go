package api

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"manta/head/jobs"
	"manta/head/state"
)

const (
	// maxFileBytes is OpenAI's bound on one file.
	maxFileBytes = 512 << 20
	maxPage      = 10_000
	maxFileName  = 255
)

// fileObject is OpenAI's.
type fileObject struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	Bytes     int64  `json:"bytes"`
	CreatedAt int64  `json:"created_at"`
	Filename  string `json:"filename"`
	Purpose   string `json:"purpose"`
	Status    string `json:"status"`
	ExpiresAt *int64 `json:"expires_at,omitempty"`
}

func describeFile(f state.File) fileObject {
	o := fileObject{f.ID, "file", f.Size(), f.Created.Unix(), f.Name, f.Purpose, "processed", nil}
	if f.Lasts > 0 {
		at := f.Created.Add(f.Lasts).Unix()
		o.ExpiresAt = &at
	}
	return o
}

// uploadFile takes a form with purpose and file. The bytes go to the store piece by
// piece as they come; the file is there once a majority of the heads has them all.
func (s *Server) uploadFile(w http.ResponseWriter, r *http.Request) (any, error) {
	file, err := s.upload(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.work.Apply(r.Context(), state.Change{PutFile: file}); err != nil {
		return nil, err
	}
	file.Created = time.Now()
	return describeFile(*file), nil
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) (*state.File, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFileBytes+1<<20)
	form, err := r.MultipartReader()
	if err != nil {
		return nil, badField("file", "the body must be a form (multipart/form-data) with file and purpose: %v", err)
	}
	c := by(r.Context())
	file := &state.File{ID: "file-" + rand.Text(), Owner: c.hash, Key: c.name}
	var expires *expiresAfter
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, badField("file", "the body could not be read: %v", err)
		}
		if err := s.formPart(w, r, part, file, &expires); err != nil {
			return nil, err
		}
	}
	if file.Lasts, err = expires.last("expires_after"); err != nil {
		return nil, err
	}
	switch {
	case file.Name == "":
		return nil, badField("file", "file must be given")
	case file.Purpose == "":
		return nil, badField("purpose", "purpose must be given: batch")
	}
	return file, nil
}

func (s *Server) formPart(w http.ResponseWriter, r *http.Request, part *multipart.Part, file *state.File, expires **expiresAfter) (err error) {
	short := func() (string, error) {
		text, err := io.ReadAll(io.LimitReader(part, 64))
		return string(text), err
	}
	switch name := part.FormName(); name {
	case "expires_after[anchor]", "expires_after[seconds]":
		text, err := short()
		if err != nil {
			return err
		}
		if *expires == nil {
			*expires = &expiresAfter{}
		}
		if name == "expires_after[anchor]" {
			(*expires).Anchor = text
		} else if (*expires).Seconds, err = strconv.Atoi(text); err != nil {
			return badField("expires_after", "expires_after: seconds must be a number, got %q", text)
		}
		return nil
	case "purpose":
		purpose, err := short()
		if file.Purpose = purpose; err == nil && file.Purpose != "batch" && file.Purpose != "user_data" {
			return badField("purpose", "purpose %q is not supported: give batch", file.Purpose)
		}
		return err
	case "file":
		name := part.FileName()
		if file.Name = cmp.Or(name, "file"); len(file.Name) > maxFileName {
			return badField("file", "the file's name has %d bytes, at most %d", len(file.Name), maxFileName)
		}
		slow := &paced{from: part, control: http.NewResponseController(w), time: s.limits.BodyTime}
		file.Parts, err = jobs.PutFile(r.Context(), s.store, slow, maxFileBytes)
		var large *http.MaxBytesError
		if errors.Is(err, jobs.ErrTooLarge) || errors.As(err, &large) {
			return &Error{Status: http.StatusRequestEntityTooLarge, Type: "BadRequestError", Param: "file",
				Message: fmt.Sprintf("the file is larger than %d bytes", maxFileBytes)}
		}
		return err
	}
	return nil // others change nothing here
}

// paced gives a client its time for every piece of a body.
type paced struct {
	from    io.Reader
	control *http.ResponseController
	time    time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	// A recorder in a test has no deadlines; a real connection does.
	_ = p.control.SetReadDeadline(time.Now().Add(p.time))
	return p.from.Read(b)
}

// file finds the file that a path names.
func (s *Server) file(w http.ResponseWriter, r *http.Request) (state.File, error) {
	id := r.PathValue("id")
	view, _ := s.newest(w, r)
	f, ok := view.Files[id]
	if !ok || !by(r.Context()).sees(f.Owner) || f.Expired(time.Now()) {
		return state.File{}, noFile("id", id)
	}
	return f, nil
}

func noFile(field, id string) *Error {
	return &Error{Status: http.StatusNotFound, Type: "NotFoundError", Param: field, Message: "there is no file " + id}
}

// inputOf checks that a caller's file is there, on whichever head it was uploaded.
func (s *Server) inputOf(r *http.Request, id, field string) error {
	if err := s.catchUp(r.Context()); err != nil {
		return err
	}
	f, ok := s.views.View().Files[id]
	if !ok || !by(r.Context()).sees(f.Owner) || f.Expired(time.Now()) {
		return noFile(field, id)
	}
	if f.Size() > jobs.MaxInputBytes {
		return badField(field, "file %s has %d bytes, a batch's input at most %d", id, f.Size(), jobs.MaxInputBytes)
	}
	return nil
}

func (s *Server) getFile(w http.ResponseWriter, r *http.Request) (any, error) {
	f, err := s.file(w, r)
	if err != nil {
		return nil, err
	}
	return describeFile(f), nil
}

func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request) (any, error) {
	f, err := s.file(w, r)
	if err != nil {
		return nil, err
	}
	for _, j := range s.views.View().Jobs {
		if j.Batch != nil && j.Batch.Input == f.ID && !j.Status.Over() {
			return nil, &Error{Status: http.StatusConflict, Type: "ConflictError", Param: "id",
				Message: "batch " + j.ID + " reads this file: cancel it first, or wait for its end"}
		}
	}
	if err := s.work.Apply(r.Context(), state.Change{DeleteFile: f.ID}); err != nil && !errors.Is(err, state.ErrUnknown) {
		return nil, err
	}
	return struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Deleted bool   `json:"deleted"`
	}{f.ID, "file", true}, nil
}

func (s *Server) fileContent(w http.ResponseWriter, r *http.Request) (any, error) {
	f, err := s.file(w, r)
	if err != nil {
		return nil, err
	}
	return nil, s.download(w, r, f.Name, f.Parts)
}

// download writes parts as they come from the store.
func (s *Server) download(w http.ResponseWriter, r *http.Request, name string, parts []state.Part) error {
	from := jobs.Open(r.Context(), s.store, parts)
	buffer := make([]byte, 256<<10)
	for first := true; ; first = false {
		n, err := io.ReadFull(from, buffer)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			if first {
				return err
			}
			s.log.Error("download cut off", "name", name, "error", err)
			panic(http.ErrAbortHandler) // the client must not take half a file for a whole one
		}
		if first {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Length", strconv.FormatInt(state.Length(parts), 10))
			w.Header().Set("Content-Disposition", "attachment; filename*=UTF-8''"+url.PathEscape(name))
			w.WriteHeader(http.StatusOK)
		}
		s.extend(w)
		if _, failed := w.Write(buffer[:n]); failed != nil || err != nil {
			return nil
		}
	}
}

// listObject is OpenAI's form of a page.
type listObject[T any] struct {
	Object  string `json:"object"`
	Data    []T    `json:"data"`
	FirstID string `json:"first_id,omitempty"`
	LastID  string `json:"last_id,omitempty"`
	HasMore bool   `json:"has_more"`
}

// page cuts what a query's limit and after ask for out of a list.
func page[T any](r *http.Request, all []T, most int, id func(T) string) (listObject[T], error) {
	query := r.URL.Query()
	limit := most
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxPage {
			return listObject[T]{}, badField("limit", "limit must be between 1 and %d, got %q", maxPage, text)
		}
	}
	if after := query.Get("after"); after != "" {
		at := slices.IndexFunc(all, func(one T) bool { return id(one) == after })
		if at < 0 {
			return listObject[T]{}, badField("after", "after names nothing in this list: %q", after)
		}
		all = all[at+1:]
	}
	answer := listObject[T]{Object: "list", Data: []T{}, HasMore: len(all) > limit}
	answer.Data = append(answer.Data, all[:min(limit, len(all))]...)
	if n := len(answer.Data); n > 0 {
		answer.FirstID, answer.LastID = id(answer.Data[0]), id(answer.Data[n-1])
	}
	return answer, nil
}

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	c, purpose := by(r.Context()), r.URL.Query().Get("purpose")
	var all []state.File
	for _, f := range view.Files {
		if c.sees(f.Owner) && (purpose == "" || f.Purpose == purpose) && !f.Expired(time.Now()) {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b state.File) int {
		order := cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
		if r.URL.Query().Get("order") == "asc" {
			return -order
		}
		return order
	})
	var list []fileObject
	for _, f := range all {
		list = append(list, describeFile(f))
	}
	answer, err := page(r, list, maxPage, func(f fileObject) string { return f.ID })
	if err != nil {
		return nil, err
	}
	return answer, nil
}
