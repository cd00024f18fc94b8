// Package api is what the agent says and hears on its control socket: HTTP with
// JSON bodies over a unix socket, and the client that the commands and the OCI
// hook use.
//
//	POST   /v1/containers               AddRequest -> AddReply
//	GET    /v1/containers               -> []Container
//	GET    /v1/containers/{id}          -> Container; id may be a unique prefix or a name
//	POST   /v1/containers/{id}/prepare  PrepareRequest -> AddReply
//	DELETE /v1/containers/{id}/prepare  gives up what was prepared and not added
//	POST   /v1/containers/{id}/evict    EvictRequest -> EvictReply
//	POST   /v1/containers/{id}/set      SetRequest -> Container
//	GET    /v1/agent                    -> Agent
//
// Errors come as Error with a 4xx or 5xx status. Both sides say their Protocol, the
// client in its request and the agent in its reply, also in one that refuses: who
// reads another than its own says so, and takes nothing else from that message.
package api

import (
	"strconv"
	"time"

	"github.com/farpage/farpage/oci/policy"
)

// Protocol is the version of what is said here. It is raised when programs before and
// after a change would misunderstand each other; a field that is added does not do so.
const Protocol = 1

// The headers that tell who speaks.
const (
	ProtocolHeader = "Farpage-Protocol" // of requests and replies; without one nothing is checked
	VersionHeader  = "Farpage-Version"  // of replies: the agent's build
)

// ProtocolText is Protocol as it stands in ProtocolHeader.
var ProtocolText = strconv.Itoa(Protocol)

// MaxSocketPathBytes is what fits into sun_path (unix(7)).
const MaxSocketPathBytes = 107

// SocketName is the control socket's file name in the agent's socket directory.
const SocketName = "agent.sock"

// DefaultSocketDir is where the agent's sockets are unless it is told otherwise.
const DefaultSocketDir = "/run/farpage"

// AddRequest announces a container that is about to start.
type AddRequest struct {
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Pid    int           `json:"pid"`              // first process, in the agent's pid namespace
	Cgroup string        `json:"cgroup,omitempty"` // absolute folder with memory.stat; empty: none
	Policy policy.Policy `json:"policy"`
	// Unmanaged, when not empty, says why the container could not be set up
	// (on-failure=open): it is listed with this reason and nothing is mounted.
	Unmanaged string `json:"unmanaged,omitempty"`
	// Prepared: its folder was made by a PrepareRequest and is mounted already.
	Prepared bool `json:"prepared,omitempty"`
}

// PrepareRequest asks for the folder of a container that is being configured: it has no
// process yet. AddRequest follows before the first one starts, within PreparedMax.
type PrepareRequest struct {
	Policy policy.Policy `json:"policy"`
}

// PreparedMax is how long a folder is kept that was prepared and whose container was not
// added.
const PreparedMax = time.Hour

// AddReply tells where the container's folder is on the host: libfarpage.so, the
// bell and the hand-off socket, to be mounted read-only at policy.MountPoint.
type AddReply struct {
	Dir string `json:"dir"`
}

// EvictRequest asks for eviction now, whatever the watermarks say.
type EvictRequest struct {
	Bytes int64 `json:"bytes,omitempty"`
	All   bool  `json:"all,omitempty"`
}

// EvictReply says how many pages went far.
type EvictReply struct {
	EvictedPages int64 `json:"evicted_pages"`
}

// SetRequest changes a container's policy at run time. Nil fields stay as they are.
type SetRequest struct {
	LocalBytes *int64 `json:"local_bytes,omitempty"`
	FarBytes   *int64 `json:"far_bytes,omitempty"` // policy.Unlimited or a size
}

// Agent is what an agent says of itself.
type Agent struct {
	Version string `json:"version"`
	Pid     int    `json:"pid"`
	// Environment: FARPAGE_LOCAL and the like of a container's environment count
	// as annotations.
	Environment bool `json:"environment"`
}

// Error is the body of a reply that is not a success.
type Error struct {
	Error string `json:"error"`
}

// Container is one container: its statistics and its processes.
type Container struct {
	Stats
	ProcessList []Process `json:"process_list"`
}

// Process is one process of a container.
type Process struct {
	Pid     int    `json:"pid"` // in the agent's pid namespace
	Command string `json:"command"`
	State   string `json:"state"`            // "managed" or "unmanaged"
	Reason  string `json:"reason,omitempty"` // why it is unmanaged
}

// Stats are a container's statistics, as the contract names them. Sizes in bytes.
type Stats struct {
	Schema            int          `json:"schema"`
	ID                string       `json:"id"`
	Name              string       `json:"name"`
	Armed             bool         `json:"armed"`
	BudgetBytes       int64        `json:"budget_bytes"`
	ResidentBytes     int64        `json:"resident_bytes"`
	ResidentPeakBytes int64        `json:"resident_peak_bytes"`
	UnevictableBytes  int64        `json:"unevictable_bytes"`
	FarBytes          int64        `json:"far_bytes"`
	FarLimitBytes     int64        `json:"far_limit_bytes"` // -1: unlimited
	FarLimitHits      int64        `json:"far_limit_hits"`
	StoreBytes        int64        `json:"store_bytes"`
	Processes         ProcessCount `json:"processes"`
	Forks             int64        `json:"forks"`
	Execs             int64        `json:"execs"`
	Faults            Faults       `json:"faults"`
	StallUs           int64        `json:"stall_us"`
	EvictedPages      int64        `json:"evicted_pages"`
	RestoredPages     int64        `json:"restored_pages"`
	PrefetchedPages   int64        `json:"prefetched_pages"`
	Errors            Errors       `json:"errors"`
}

// ProcessCount counts a container's processes.
type ProcessCount struct {
	Managed   int64 `json:"managed"`
	Unmanaged int64 `json:"unmanaged"`
	Exited    int64 `json:"exited"`
}

// Faults counts page faults and how long they took, in microseconds.
type Faults struct {
	Total       int64 `json:"total"`
	ServedFar   int64 `json:"served_far"`
	ServedZero  int64 `json:"served_zero"`
	Unexplained int64 `json:"unexplained"`
	P50Us       int64 `json:"p50_us"`
	P99Us       int64 `json:"p99_us"`
}

// Errors counts what went wrong.
type Errors struct {
	Store    int64 `json:"store"`
	Checksum int64 `json:"checksum"`
	Protocol int64 `json:"protocol"`
}
