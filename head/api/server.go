package api

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"manta/head/jobs"
	"manta/head/limit"
	"manta/internal/trace"
)

// Limits bound what one client can make the head hold. Zero means the default.
type Limits struct {
	BodyBytes   int64
	HeldBytes   int64         // of the bodies of all requests in progress
	BodyTime    time.Duration // to send the body
	WriteTime   time.Duration // to take a piece of the answer
	RequestTime time.Duration // of a whole request
	WaitTime    time.Duration // for a replica to take it
	Requests    int           // in progress at once on this head, waiting ones included
	Heartbeat   time.Duration // between comments on a silent stream
}

func (l Limits) withDefaults() Limits {
	byDefault := func(value *time.Duration, otherwise time.Duration) {
		if *value == 0 {
			*value = otherwise
		}
	}
	byDefault(&l.BodyTime, time.Minute)
	byDefault(&l.WriteTime, 30*time.Second)
	byDefault(&l.RequestTime, time.Hour)
	byDefault(&l.WaitTime, 5*time.Minute)
	byDefault(&l.Heartbeat, 500*time.Millisecond)
	if l.BodyBytes == 0 {
		l.BodyBytes = 16 << 20
	}
	if l.HeldBytes == 0 {
		l.HeldBytes = max(512<<20, l.BodyBytes)
	}
	if l.Requests == 0 {
		l.Requests = 4096
	}
	return l
}

// Config is what a Server needs.
type Config struct {
	Views    Views
	Texts    Texts
	Dispatch Submitter
	Cluster  Cluster
	Heard    Heard // nil: nothing is known of what nodes tell
	Logs     Logs  // nil: none can be read
	Keys     *Keys // that this head was started with; nil: none
	KeysOff  bool  // no key is demanded, whatever keys there are
	Keyring  Keyring
	Rates    *limit.Limiter // of keys; nil: no limits
	Metrics  http.Handler   // of /metrics; nil: none
	Limits   Limits
	Log      *slog.Logger
	Tracer   *trace.Tracer // nil: no request is traced
	// Work commits what users submit, and Store keeps its bytes; nil: there are no
	// jobs, files and batches.
	Work  Committer
	Store jobs.Store
	// Restored tells whether this head knows again what it knew before it stopped,
	// keys among that; nil: it does.
	Restored func() bool
	// CanQueue tells /readyz whether requests to this head have an answer to hope for; nil: they have.
	CanQueue func() error
}

// Server answers HTTP. Handler is safe for concurrent use.
type Server struct {
	views    Views
	texts    Texts
	dispatch Submitter
	cluster  Cluster
	heard    Heard
	logs     Logs
	keys     *Keys
	keysOff  bool
	keyring  Keyring
	rates    *limit.Limiter
	work     Committer
	store    jobs.Store
	metrics  http.Handler
	limits   Limits
	log      *slog.Logger
	tracer   *trace.Tracer
	canQueue func() error
	restored func() bool
	progress atomic.Int64        // generation requests in hand
	held     *semaphore.Weighted // bytes of their bodies

	fresh struct {
		sync.Mutex
		asked time.Time // when the last question to the leader that was answered began
	}
}

// New makes a server.
func New(config Config) *Server {
	s := &Server{
		views: config.Views, texts: config.Texts, dispatch: config.Dispatch, cluster: config.Cluster, heard: config.Heard, logs: config.Logs,
		keys: config.Keys, keysOff: config.KeysOff, keyring: config.Keyring, rates: config.Rates, work: config.Work, store: config.Store, metrics: config.Metrics, limits: config.Limits.withDefaults(), log: config.Log, tracer: config.Tracer,
		canQueue: config.CanQueue, restored: config.Restored,
	}
	s.held = semaphore.NewWeighted(s.limits.HeldBytes)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Handler gives the whole surface.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, answer := range map[string]answerer{
		"GET /health":                               s.health,
		"GET /livez":                                s.live,
		"GET /readyz":                               s.ready,
		"GET /version":                              s.version,
		"GET /ping":                                 s.health,
		"GET /v1/models":                            s.models,
		"GET /v1/models/{$}":                        s.models,
		"GET /v1/models/{model...}":                 s.model,
		"GET /api/cluster":                          s.clusterState,
		"GET /api/cluster/deployments":              s.listDeployments,
		"POST /api/cluster/deployments":             s.createDeployment,
		"GET /api/cluster/deployments/{name...}":    s.getDeployment,
		"DELETE /api/cluster/deployments/{name...}": s.deleteDeployment,
		"PATCH /api/cluster/deployments/{name...}":  s.patchDeployment,
		"GET /api/cluster/nodes":                    s.listNodes,
		"GET /api/cluster/logs/{name...}":           s.readLogs,
		"GET /api/cluster/events":                   s.listEvents,
		"GET /api/cluster/explain/{name...}":        s.explainDeployment,
		"GET /api/cluster/nodes/{name}":             s.getNode,
		"DELETE /api/cluster/nodes/{name}":          s.deleteNode,
		"POST /api/cluster/nodes/{name}/drain":      s.drainNode,
		"POST /api/cluster/nodes/{name}/undrain":    s.undrainNode,
		"GET /api/keys":                             s.listKeys,
		"POST /api/keys":                            s.createKey,
		"DELETE /api/keys/{name}":                   s.revokeKey,
	} {
		mux.HandleFunc(pattern, s.answered(answer))
	}
	for pattern, answer := range map[string]answerer{
		"POST /v1/completions":      s.completions,
		"POST /v1/chat/completions": s.chat,
		"POST /tokenize":            s.tokenize,
		"POST /detokenize":          s.detokenize,
		"POST /generate":            s.generate,
		"POST /batch-generate":      s.batchGenerate,
	} {
		mux.HandleFunc(pattern, s.limited(s.answered(answer)))
	}
	if s.work != nil {
		s.handleWork(mux)
	}
	if s.metrics != nil {
		mux.Handle("GET /metrics", s.metrics)
	}
	return s.timed(s.bounded(s.named(s.crossOrigin(s.authorized(s.routed(mux))))))
}

// An answerer gives what a request is answered with as JSON, nil when it has answered
// itself; or says why it can't.
type answerer func(w http.ResponseWriter, r *http.Request) (any, error)

// created marks the answer to a request that made something.
type created struct{ what any }

func (s *Server) answered(by answerer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := by(w, r)
		made, is := answer.(created)
		switch {
		case err != nil:
			s.fail(w, r, err)
		case is:
			s.reply(w, http.StatusCreated, made.what)
		case answer != nil:
			s.reply(w, http.StatusOK, answer)
		}
	}
}

// bounded gives its time to what a handler writes by itself, and to what net/http writes
// once it has returned: a deadline outlives the piece, and the request, it was set for.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.extend(w)
		defer s.extend(w)
		next.ServeHTTP(w, r)
	})
}

type arrivedKey struct{}

// timed notes when each request came, where that begins its trace.
func (s *Server) timed(next http.Handler) http.Handler {
	if s.tracer == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), arrivedKey{}, time.Now())))
	})
}

// routed answers in OpenAI's shape where the mux would answer in plain text.
func (s *Server) routed(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := r.Clone(r.Context())
		var taken []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
			probe.Method = method
			if _, pattern := mux.Handler(probe); pattern != "" {
				taken = append(taken, method)
			}
		}
		if len(taken) > 0 {
			w.Header().Set("Allow", strings.Join(taken, ", "))
			s.fail(w, r, &Error{
				Status: http.StatusMethodNotAllowed, Type: "MethodNotAllowedError",
				Message: r.URL.Path + " takes " + strings.Join(taken, " and ") + ", not " + r.Method,
			})
			return
		}
		message := "there is nothing at " + r.URL.Path
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			message += ": of OpenAI's API there are /v1/models, /v1/chat/completions, /v1/completions, /v1/files and /v1/batches"
		}
		s.fail(w, r, &Error{Status: http.StatusNotFound, Type: "NotFoundError", Message: message})
	})
}

// limited bounds the requests, and the bytes of their bodies, that this head holds.
func (s *Server) limited(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// A body of unknown length may be as long as any.
		size := s.limits.BodyBytes
		if r.ContentLength >= 0 {
			size = min(size, r.ContentLength)
		}
		defer s.progress.Add(-1)
		if s.progress.Add(1) > int64(s.limits.Requests) || !s.held.TryAcquire(size) {
			s.fail(w, r, errBusy)
			return
		}
		defer s.held.Release(size)
		next(w, r)
	}
}

var errBusy = &Error{
	Status: http.StatusTooManyRequests, Type: "RateLimitError", RetryAfter: 1,
	Message: "this head has as many requests in progress as it can hold",
}

const requestIDHeader = "X-Request-Id"

// named gives each answer a request id: the client's own, if it is a sane one.
func (s *Server) named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if !sane(id) {
			id = rand.Text()
		}
		w.Header().Set(requestIDHeader, id)
		next.ServeHTTP(w, r)
	})
}

func sane(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// crossOrigin allows browsers from anywhere, as vLLM does by default. Keys are
// sent by the page itself, never by the browser, so credentials stay off.
func (s *Server) crossOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Access-Control-Expose-Headers", requestIDHeader+", Retry-After")
		}
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			w.Header().Set("Access-Control-Allow-Methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT")
			if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
				w.Header().Set("Access-Control-Allow-Headers", asked)
			}
			w.Header().Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusOK)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// extend gives the client its time to take the next piece. A recorder in a test
// has no deadlines; a real connection does.
func (s *Server) extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.WriteTime))
}

// Serve answers on a listener until ctx ends. Then it drains: new requests are
// refused, those in progress have grace to end.
func (s *Server) Serve(ctx context.Context, listener net.Listener, grace time.Duration) error {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ConnContext: withConnection, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	limit, stop := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer stop()
	drained := s.dispatch.Drain(limit)
	err := server.Shutdown(limit)
	if drained != nil || err != nil {
		s.log.Warn("requests cut off at shutdown", "drain", drained, "shutdown", err)
		err = server.Close()
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		return serveErr
	}
	return err
}
