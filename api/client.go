package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
)

// ErrNotRunning says that nobody answers on the agent's socket.
var ErrNotRunning = errors.New("the agent is not running")

// StatusError is the agent's refusal: what it said, and the HTTP status.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string { return e.Message }

// maxReplyBytes bounds a reply. A container with 10,000 processes needs about 1 MiB.
const maxReplyBytes = 256 << 20

// Client talks to one agent. It is safe for concurrent use.
type Client struct {
	socket string // path
	http   *http.Client
}

// NewClient returns a client of the agent whose control socket is at socketPath. It
// does not connect yet.
func NewClient(socketPath string) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socketPath)
		},
		DisableCompression: true,
	}
	return &Client{
		socket: socketPath,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// NewClientIn returns a client of the agent whose sockets are in socketDir.
func NewClientIn(socketDir string) *Client {
	return NewClient(filepath.Join(socketDir, SocketName))
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Add announces a container. The errors of all calls are made for the person who reads
// them: errors.Is(err, ErrNotRunning) when nobody answers, a *StatusError when the
// agent refuses.
func (c *Client) Add(ctx context.Context, request AddRequest) (AddReply, error) {
	var reply AddReply
	err := c.call(ctx, http.MethodPost, "/v1/containers", request, &reply)
	return reply, err
}

// Prepare asks for the folder of a container that is to be added later. id is its whole id.
func (c *Client) Prepare(ctx context.Context, id string, request PrepareRequest) (AddReply, error) {
	var reply AddReply
	path, err := containerPath(id)
	if err == nil {
		err = c.call(ctx, http.MethodPost, path+"/prepare", request, &reply)
	}
	return reply, err
}

// GiveUp says that a container that was prepared does not come: its folder is removed. A
// container that was added is not concerned.
func (c *Client) GiveUp(ctx context.Context, id string) error {
	path, err := containerPath(id)
	if err == nil {
		err = c.call(ctx, http.MethodDelete, path+"/prepare", nil, &struct{}{})
	}
	return err
}

// List returns all containers that the agent knows.
func (c *Client) List(ctx context.Context) ([]Container, error) {
	var containers []Container
	err := c.call(ctx, http.MethodGet, "/v1/containers", nil, &containers)
	return containers, err
}

// Get returns one container. id may be the beginning of an id, if there is only one
// such, or a name.
func (c *Client) Get(ctx context.Context, id string) (Container, error) {
	var container Container
	path, err := containerPath(id)
	if err == nil {
		err = c.call(ctx, http.MethodGet, path, nil, &container)
	}
	return container, err
}

// Evict asks for eviction from one container now and returns how many pages went far.
// id is what Get takes.
func (c *Client) Evict(ctx context.Context, id string, request EvictRequest) (EvictReply, error) {
	var reply EvictReply
	path, err := containerPath(id)
	if err == nil {
		err = c.call(ctx, http.MethodPost, path+"/evict", request, &reply)
	}
	return reply, err
}

// containerPath is the resource of a container. An id that HTTP would take for a step
// in the path is refused here, or the request would reach another resource.
func containerPath(id string) (string, error) {
	if id == "" || id == "." || id == ".." {
		return "", fmt.Errorf("%q is not the id or name of a container", id)
	}
	return "/v1/containers/" + url.PathEscape(id), nil
}

// call sends one request and decodes the reply into reply. body nil sends none.
func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	var sent io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encoding the request to the agent: %w", err)
		}
		sent = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://farpage"+path, sent)
	if err != nil {
		return fmt.Errorf("making the request to the agent: %w", err)
	}
	request.Header.Set(ProtocolHeader, ProtocolText)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	if said := response.Header.Get(ProtocolHeader); said != "" && said != ProtocolText {
		return fmt.Errorf("the agent on %s is of another version (farpage %s, protocol %s; this program speaks protocol %d): use the programs of its version, or restart it with this one",
			c.socket, response.Header.Get(VersionHeader), said, Protocol)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxReplyBytes+1))
	switch {
	case err != nil:
		return c.explain(fmt.Errorf("reading the agent's reply: %w", err))
	case len(text) > maxReplyBytes:
		return fmt.Errorf("the agent's reply on %s is larger than %d bytes", c.socket, maxReplyBytes)
	case response.StatusCode < 200 || response.StatusCode > 299:
		return c.refusal(response, text)
	}
	if err := json.Unmarshal(text, reply); err != nil {
		return fmt.Errorf("the reply on %s is not what an agent says (is another program listening there?): %w", c.socket, err)
	}
	return nil
}

// refusal turns a reply that is not a success into an error.
func (c *Client) refusal(response *http.Response, text []byte) error {
	var said Error
	if err := json.Unmarshal(text, &said); err != nil || said.Error == "" {
		said.Error = fmt.Sprintf("the agent on %s answered %s and gave no reason", c.socket, response.Status)
	}
	return &StatusError{Status: response.StatusCode, Message: said.Error}
}

// explain says what a failed exchange means for whoever wanted it.
func (c *Client) explain(err error) error {
	// The method, the resource and the address are the client's own affair.
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var dial *net.OpError
	if errors.As(err, &dial) {
		err = dial.Err
	}
	var timeout net.Error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (no answer on %s): start it with `systemctl start farpage` or `farpage agent`", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to talk to the agent on %s (%w): run this as root", c.socket, err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("no agent can be on %s (%w): give the folder of its sockets as --socket-dir", c.socket, err)
	case len(c.socket) > MaxSocketPathBytes:
		return fmt.Errorf("the socket path %s is longer than the %d bytes that unix sockets allow: use a shorter --socket-dir", c.socket, MaxSocketPathBytes)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("waiting for the agent on %s: %w", c.socket, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the agent on %s did not answer in time (its log says more: `journalctl -u farpage`): %w", c.socket, context.DeadlineExceeded)
	}
	return fmt.Errorf("talking to the agent on %s: %w", c.socket, err)
}

// Set changes a container's budget or far limit and returns the container as it is
// then.
func (c *Client) Set(ctx context.Context, id string, request SetRequest) (Container, error) {
	var container Container
	path, err := containerPath(id)
	if err == nil {
		err = c.call(ctx, http.MethodPost, path+"/set", request, &container)
	}
	return container, err
}

// Agent returns what the agent says of itself.
func (c *Client) Agent(ctx context.Context) (Agent, error) {
	var agent Agent
	err := c.call(ctx, http.MethodGet, "/v1/agent", nil, &agent)
	return agent, err
}
