package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/farpage/farpage/api"
)

// What a client may send, and how long it may take. An eviction answers after
// evictWait at most.
const (
	requestMax    = 64 << 10 // bytes of a body
	headerMax     = 16 << 10 // bytes before it
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = evictWait + 30*time.Second
)

// clientsMax bounds the open connections: each is a descriptor, and faults need some.
const clientsMax = 128

// Serve answers on the control socket until it is closed.
func (a *Agent) Serve(l net.Listener) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/containers", asked(func(_ *http.Request, req api.AddRequest) (api.AddReply, error) { return a.Add(req) }))
	mux.HandleFunc("GET /v1/containers", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.List(), nil)
	})
	mux.HandleFunc("GET /v1/containers/{id}", func(w http.ResponseWriter, r *http.Request) {
		c, err := a.Get(r.PathValue("id"))
		answer(w, c, err)
	})
	mux.HandleFunc("POST /v1/containers/{id}/prepare", asked(func(r *http.Request, req api.PrepareRequest) (api.AddReply, error) {
		return a.Prepare(r.PathValue("id"), req)
	}))
	mux.HandleFunc("DELETE /v1/containers/{id}/prepare", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, a.GiveUp(r.PathValue("id")))
	})
	mux.HandleFunc("POST /v1/containers/{id}/evict", asked(func(r *http.Request, req api.EvictRequest) (api.EvictReply, error) {
		return a.Evict(r.Context(), r.PathValue("id"), req)
	}))
	mux.HandleFunc("POST /v1/containers/{id}/set", asked(func(r *http.Request, req api.SetRequest) (api.Container, error) {
		return a.Set(r.PathValue("id"), req)
	}))
	mux.HandleFunc("GET /v1/agent", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.Describe(), nil)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("this agent (farpage %s) knows no %s %s", a.opts.Version, r.Method, r.URL.Path))
	})
	c := &clients{working: map[net.Conn]bool{}}
	s := &http.Server{
		Handler: a.versioned(c.whole(mux)), ConnState: c.changed, ConnContext: remember, MaxHeaderBytes: headerMax,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
	}
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.log.Errorf("control socket: %v", err)
		}
	}()
	return s
}

// versioned says which version answers, and answers nobody of another one.
func (a *Agent) versioned(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.ProtocolHeader, api.ProtocolText)
		w.Header().Set(api.VersionHeader, a.opts.Version)
		if asks := r.Header.Get(api.ProtocolHeader); asks != "" && asks != api.ProtocolText {
			refuse(w, http.StatusConflict, fmt.Errorf("this agent is of another version (farpage %s, protocol %s; the request is of protocol %q): use the programs of its version, or restart it with theirs",
				a.opts.Version, api.ProtocolText, asks))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// asked is the handler of a request that has a body.
func asked[Request, Reply any](do func(*http.Request, Request) (Reply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Request
		if !decode(w, r, &req) {
			return
		}
		reply, err := do(r, req)
		answer(w, reply, err)
	}
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		// No statement about a policy: a container is not stopped by it.
		refuse(w, http.StatusUnprocessableEntity, fmt.Errorf("not a request that this agent understands (is it from another version of farpage?): %w", err))
		return false
	}
	return true
}

func answer(w http.ResponseWriter, reply any, err error) {
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reply) // the client may be gone
	case errors.Is(err, ErrPolicy):
		refuse(w, http.StatusBadRequest, err)
	default:
		refuse(w, http.StatusUnprocessableEntity, err)
	}
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Error{Error: err.Error()}) // the client may be gone
}

// clients are the open connections. Beyond clientsMax the oldest without a whole
// request makes room: whoever says nothing, or half of it, holds up nobody.
type clients struct {
	mu      sync.Mutex
	waiting []net.Conn        // guarded by mu: without a whole request, the oldest first
	working map[net.Conn]bool // guarded by mu
}

// changed is the server's ConnState.
func (c *clients) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.waiting = append(c.waiting, conn)
		if len(c.waiting)+len(c.working) > clientsMax {
			_ = c.waiting[0].Close() // its goroutine sees that
			c.waiting = c.waiting[1:]
		}
	case http.StateClosed, http.StateHijacked:
		c.forget(conn)
	default: // Whether a request is whole the server does not say.
	}
}

// forget drops a connection. Preconditions: c.mu is held.
func (c *clients) forget(conn net.Conn) {
	delete(c.working, conn)
	c.waiting = slices.DeleteFunc(c.waiting, func(other net.Conn) bool { return other == conn })
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// remember is the server's ConnContext.
func remember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// whole hands requests on when all of them is there.
func (c *clients) whole(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestMax))
		if err != nil {
			refuse(w, http.StatusUnprocessableEntity, fmt.Errorf("the request cannot be read: %w", err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		conn, _ := r.Context().Value(connKey{}).(net.Conn)
		c.mu.Lock()
		c.forget(conn)
		c.working[conn] = true
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.forget(conn)
			c.waiting = append(c.waiting, conn)
		}()
		next.ServeHTTP(w, r)
	})
}
