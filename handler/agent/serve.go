package agent

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/farpage/farpage/api"
)

// requestMax bounds the body of a request, in bytes.
const requestMax = 64 << 10

// Serve answers on the control socket until it is closed.
func (a *Agent) Serve(l net.Listener) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/containers", func(w http.ResponseWriter, r *http.Request) {
		var req api.AddRequest
		if !decode(w, r, &req) {
			return
		}
		reply, err := a.Add(req)
		answer(w, reply, err)
	})
	mux.HandleFunc("GET /v1/containers", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.List(), nil)
	})
	mux.HandleFunc("GET /v1/containers/{id}", func(w http.ResponseWriter, r *http.Request) {
		c, err := a.Get(r.PathValue("id"))
		answer(w, c, err)
	})
	mux.HandleFunc("POST /v1/containers/{id}/evict", func(w http.ResponseWriter, r *http.Request) {
		var req api.EvictRequest
		if !decode(w, r, &req) {
			return
		}
		reply, err := a.Evict(r.Context(), r.PathValue("id"), req)
		answer(w, reply, err)
	})
	mux.HandleFunc("POST /v1/containers/{id}/set", func(w http.ResponseWriter, r *http.Request) {
		var req api.SetRequest
		if !decode(w, r, &req) {
			return
		}
		c, err := a.Set(r.PathValue("id"), req)
		answer(w, c, err)
	})
	mux.HandleFunc("GET /v1/agent", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.Describe(), nil)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.log.Errorf("control socket: %v", err)
		}
	}()
	return s
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(api.Error{Error: "not a request of this agent's: " + err.Error()})
		return false
	}
	return true
}

func answer(w http.ResponseWriter, reply any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status := http.StatusUnprocessableEntity
		if errors.Is(err, ErrPolicy) {
			status = http.StatusBadRequest
		}
		w.WriteHeader(status)
		reply = api.Error{Error: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(reply) // the client may be gone
}
