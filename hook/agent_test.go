package hook

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/farpage/farpage/api"
)

// fakeAgent speaks the agent's protocol on a real socket and gives every container the
// same folder.
type fakeAgent struct {
	socketDir string
	folder    string // what AddReply.Dir says

	mu       sync.Mutex
	requests []api.AddRequest // under mu
	refuse   string           // under mu; what every Add that is not a report is refused with
	onAdd    func(api.AddRequest)
	about    api.Agent // what it says of itself
}

// startAgent starts an agent whose containers get folder.
func startAgent(t *testing.T, folder string) *fakeAgent {
	t.Helper()
	a := &fakeAgent{socketDir: socketDir(t), folder: folder}
	listener, err := net.Listen("unix", filepath.Join(a.socketDir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/containers", a.add)
	mux.HandleFunc("GET /v1/agent", func(w http.ResponseWriter, _ *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		answer(w, http.StatusOK, a.about)
	})
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return a
}

func (a *fakeAgent) add(w http.ResponseWriter, r *http.Request) {
	var request api.AddRequest
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		answer(w, http.StatusBadRequest, api.Error{Error: err.Error()})
		return
	}
	a.mu.Lock()
	a.requests = append(a.requests, request)
	refuse, onAdd := a.refuse, a.onAdd
	a.mu.Unlock()
	if onAdd != nil {
		onAdd(request)
	}
	if refuse != "" && request.Unmanaged == "" {
		answer(w, http.StatusConflict, api.Error{Error: refuse})
		return
	}
	answer(w, http.StatusOK, api.AddReply{Dir: a.folder})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the hook has gone: its test sees that
}

// asked returns what the agent was asked so far.
func (a *fakeAgent) asked() []api.AddRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]api.AddRequest(nil), a.requests...)
}

// socketDir returns an empty folder whose path leaves room for a socket's name.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "farpage-hook-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
