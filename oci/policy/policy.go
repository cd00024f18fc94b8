// Package policy turns a container's annotations into the policy that the agent
// follows for it.
package policy

// MountPoint is where a container sees its farpage folder. It lies under /dev, a
// tmpfs of the container's own, so that nothing of it gets into a committed image.
const MountPoint = "/dev/farpage"

// Library is where a container's programs find the shim.
const Library = MountPoint + "/libfarpage.so"

// Unlimited is a far limit of none.
const Unlimited int64 = -1

// What happens to a container that cannot be set up.
const (
	OnFailureOpen   = "open"   // starts unmanaged
	OnFailureClosed = "closed" // does not start
)

// Range is a half-open range of addresses.
type Range struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}

// Policy is what a container asked for, checked and complete.
type Policy struct {
	LocalBytes  int64   `json:"local_bytes"`
	FarBytes    int64   `json:"far_bytes"` // Unlimited or a size
	Store       string  `json:"store"`
	LowPercent  int     `json:"low_percent"`
	HighPercent int     `json:"high_percent"`
	Regions     []Range `json:"regions,omitempty"` // none: all
	OnFailure   string  `json:"on_failure"`
}
