package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/oci/policy"
)

// agentOn serves handler on a unix socket until the test ends and returns its path.
func agentOn(t *testing.T, handler http.Handler) string {
	t.Helper()
	path := filepath.Join(shortDir(t), SocketName)
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return path
}

// shortDir is t.TempDir, or a shorter one where a socket's path would not fit.
func shortDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if len(dir)+len("/"+SocketName) <= MaxSocketPathBytes {
		return dir
	}
	dir, err := os.MkdirTemp("/tmp", "farpage")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func clientOf(t *testing.T, socket string) *Client {
	t.Helper()
	client := NewClient(socket)
	t.Cleanup(client.Close)
	return client
}

// reply answers with one JSON value.
func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client has gone: its test sees that
}

func TestEveryCallReachesItsResource(t *testing.T) {
	var added AddRequest
	var evicted EvictRequest
	var gotID, evictID string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/containers", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&added); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusCreated, AddReply{Dir: "/run/farpage/c/1"})
	})
	mux.HandleFunc("GET /v1/containers", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, []Container{{Stats: Stats{ID: "a"}}, {Stats: Stats{ID: "b"}}})
	})
	mux.HandleFunc("GET /v1/containers/{id}", func(w http.ResponseWriter, r *http.Request) {
		gotID = r.PathValue("id")
		reply(w, http.StatusOK, Container{Stats: Stats{ID: "abc", BudgetBytes: 1 << 30}, ProcessList: []Process{{Pid: 7, State: "managed"}}})
	})
	mux.HandleFunc("POST /v1/containers/{id}/evict", func(w http.ResponseWriter, r *http.Request) {
		evictID = r.PathValue("id")
		if err := json.NewDecoder(r.Body).Decode(&evicted); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusOK, EvictReply{EvictedPages: 42})
	})
	client, ctx := clientOf(t, agentOn(t, mux)), t.Context()

	want := AddRequest{
		ID: "abc", Name: "redis", Pid: 7, Cgroup: "/sys/fs/cgroup/abc",
		Policy: policy.Policy{LocalBytes: 1 << 30, FarBytes: policy.Unlimited, Store: "default", LowPercent: 85, HighPercent: 95, Regions: []policy.Range{{Start: 4096, End: 1 << 56}}, OnFailure: "open"},
	}
	if got, err := client.Add(ctx, want); err != nil || got.Dir != "/run/farpage/c/1" {
		t.Errorf("Add: %+v, %v", got, err)
	}
	if !reflect.DeepEqual(added, want) {
		t.Errorf("the agent read %+v", added)
	}
	if got, err := client.List(ctx); err != nil || len(got) != 2 || got[1].ID != "b" {
		t.Errorf("List: %+v, %v", got, err)
	}
	if got, err := client.Get(ctx, "shop/cart/redis"); err != nil || got.BudgetBytes != 1<<30 || got.ProcessList[0].Pid != 7 {
		t.Errorf("Get: %+v, %v", got, err)
	}
	if gotID != "shop/cart/redis" {
		t.Errorf("Get asked for %q", gotID)
	}
	if got, err := client.Evict(ctx, "a b?c", EvictRequest{All: true}); err != nil || got.EvictedPages != 42 {
		t.Errorf("Evict: %+v, %v", got, err)
	}
	if evictID != "a b?c" || !evicted.All {
		t.Errorf("Evict asked for %q, %+v", evictID, evicted)
	}
}

func TestAnIDThatWouldChangeThePathIsRefused(t *testing.T) {
	client := clientOf(t, agentOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the agent was asked for %s", r.URL)
	})))
	for _, id := range []string{"", ".", ".."} {
		if _, err := client.Get(t.Context(), id); err == nil {
			t.Errorf("Get(%q) went through", id)
		}
		if _, err := client.Evict(t.Context(), id, EvictRequest{}); err == nil {
			t.Errorf("Evict(%q) went through", id)
		}
	}
}

func TestAMissingAgentIsSaidWithHowToStartIt(t *testing.T) {
	missing := filepath.Join(shortDir(t), SocketName)
	// A socket file that nobody listens on is what a killed agent leaves behind.
	left := filepath.Join(shortDir(t), SocketName)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	for name, socket := range map[string]string{"no socket": missing, "a socket without a listener": left} {
		_, err := clientOf(t, socket).List(t.Context())
		want := "the agent is not running (no answer on " + socket + "): start it with `systemctl start farpage` or `farpage agent`"
		if err == nil || err.Error() != want || !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARefusalIsGivenInTheAgentsWords(t *testing.T) {
	socket := agentOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/containers/said":
			reply(w, http.StatusNotFound, Error{Error: `no container "said": see "farpage ps"`})
		case "/v1/containers/moved":
			http.Redirect(w, r, "/v1/containers/said", http.StatusMovedPermanently)
		default:
			http.Error(w, "panic", http.StatusInternalServerError)
		}
	}))
	for id, want := range map[string]StatusError{
		"said":   {404, `no container "said": see "farpage ps"`},
		"silent": {500, "the agent on " + socket + " answered 500 Internal Server Error and gave no reason"},
		"moved":  {301, "the agent on " + socket + " answered 301 Moved Permanently and gave no reason"},
	} {
		_, err := clientOf(t, socket).Get(t.Context(), id)
		var refused *StatusError
		if !errors.As(err, &refused) || *refused != want {
			t.Errorf("%s: %#v", id, err)
		}
	}
}

func TestAnotherProgramOnTheSocketIsFoundOut(t *testing.T) {
	socket := agentOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, "<html>") }))
	_, err := clientOf(t, socket).List(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is not what an agent says (is another program listening there?)") {
		t.Errorf("%v", err)
	}
}

func TestASilentAgentIsNotWaitedForLongerThanTheContextSays(t *testing.T) {
	release := make(chan struct{})
	socket := agentOn(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := clientOf(t, socket).Add(ctx, AddRequest{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "the agent on "+socket+" did not answer in time") {
		t.Errorf("%v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := clientOf(t, socket).List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestASocketThatCannotBeReachedIsSaidWithWhatToDo(t *testing.T) {
	file := filepath.Join(shortDir(t), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := "/run/" + strings.Repeat("x", 120)
	for dir, want := range map[string]string{
		long: "the socket path " + long + "/agent.sock is longer than the 107 bytes that unix sockets allow: use a shorter --socket-dir",
		file: "no agent can be on " + file + "/agent.sock (connect: not a directory): give the folder of its sockets as --socket-dir",
	} {
		client := NewClientIn(dir)
		if _, err := client.List(t.Context()); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		client.Close()
	}
	err := NewClient("/run/farpage/agent.sock").explain(&url.Error{Op: "Get", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}})
	if want := "not allowed to talk to the agent on /run/farpage/agent.sock (connect: permission denied): run this as root"; err == nil || err.Error() != want || !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestBothSidesSayTheirProtocolAndAnotherIsRefused(t *testing.T) {
	var asked, says string
	var answers []Container
	socket := agentOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get(ProtocolHeader)
		if says != "" {
			w.Header().Set(ProtocolHeader, says)
			w.Header().Set(VersionHeader, "v9")
		}
		if r.Method == http.MethodPost {
			reply(w, http.StatusBadRequest, Error{Error: "refused"})
			return
		}
		reply(w, http.StatusOK, answers)
	}))
	client := clientOf(t, socket)
	for _, says = range []string{"", ProtocolText} {
		if _, err := client.List(t.Context()); err != nil || asked != ProtocolText {
			t.Errorf("an agent that says %q: asked with protocol %q, %v", says, asked, err)
		}
	}
	says = "2"
	want := "the agent on " + socket + " is of another version (farpage v9, protocol 2; this program speaks protocol 1): use the programs of its version, or restart it with this one"
	_, err := client.List(t.Context())
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	// What it says beside that may mean something else: it refuses no policy, for one.
	var status *StatusError
	if _, err := client.Add(t.Context(), AddRequest{}); err == nil || err.Error() != want || errors.As(err, &status) {
		t.Errorf("%v, want %s", err, want)
	}
}
