// Package state is everything about one container that must outlive the agent
// process: plain structs and arrays in one memfd, no Go pointers. The keeper
// holds the descriptor; a new agent maps it and goes on.
//
// Layout: Header, configuration (JSON), Procs, Runs, the event Ring, slot
// records, page table nodes, raw page buffers, the store's arena. Everything
// beyond the ring is sparse: it costs memory when it is first written.
//
// One thread writes here, the container's engine. It may be killed between any
// two stores, so records are filled before the word that makes them valid, and
// emptied after it.
package state

import "github.com/farpage/farpage/handler/uffd"

// Magic and Version begin every Header.
const (
	Magic   uint64 = 0x3153454741505246 // "FRPAGES1"
	Version uint32 = 2
)

// How many of each there are.
const (
	MaxProcs   = 16384
	RunsMax    = 64   // per command, as in shim/protocol.h
	RingSlots  = 4096 // events read and not yet applied
	RawBuffers = 2048 // pages on their way to the store
	configMax  = 32 << 10
)

// Header is the first page.
type Header struct {
	Magic      uint64
	Version    uint32
	ConfigLen  uint32
	ListenerFD int32
	_          int32
	Sequence   uint64 // of the newest ring slot
	ID         uint64 // random; checksums and nonces of this container only
	Counters   Counters
}

// Counters are statistics that go on over an agent's death.
type Counters struct {
	Faults, ServedFar, ServedZero, Unexplained  uint64
	StallUs, Evicted, Restored, Prefetched      uint64
	Forks, Execs, Exited, FarLimitHits          uint64
	StoreErrors, ChecksumErrors, ProtocolErrors uint64
	ResidentPeak                                uint64
	Latency                                     [40]uint64 // faults by time, see engine's histogram
}

// Proc.Used values.
const (
	ProcFree   = 0
	ProcForked = 1 // being made by a FORK event that is still in the ring
	ProcLive   = 2
)

// Proc.Flags bits.
const (
	FlagChild      = 1 << iota // came by a FORK event
	FlagIdentified             // a process id is known
	FlagReady                  // the helper takes commands
	FlagHungUp                 // the helper is gone
	FlagChecked                // a child's table was held against its mappings
)

// Proc is one managed memory (mm): a process, or what is left of it.
type Proc struct {
	Used      uint32
	Flags     uint32
	UffdFD    int32
	SockFD    int32
	ChannelFD int32
	PagemapFD int32
	MemFD     int32
	MapsFD    int32
	SmapsFD   int32
	Pid       int32 // in the agent's pid namespace, 0: not known
	HelperTid uint32
	Start     uint64 // start time of Pid
	Area      uint64 // of the shim, see shim/protocol.h
	Nonce     uint64
	Root      uint32 // of its page table
	Command   uint32 // number of its newest command
	RunCount  uint32 // of that command; 0: none is under way
	Parent    int32  // index of the Proc that it was forked from, -1: none
	_         [168]byte
}

// Run is the agent's own note of a run of a command. What the channel says about
// addresses is the container's word.
type Run struct {
	Addr  uint64
	Pages uint32 // 0: ended or taken back
	First uint32
}

// Event is a slot of the ring. Source, a Proc's index plus one, is written before the
// read and cleared last of all; 0: free.
type Event struct {
	Source   uint32
	Phase    uint32 // of REMAP: 1 once its entries were copied
	Sequence uint64
	Msg      uffd.Msg // 32 bytes, read(2) right into here
	Child    uint32   // of FORK: the child's Proc index plus one; of REMAP: which UNMAP was its own, once that was read
	_        [12]byte
}

// Slot is one far page: where its bytes are, and how to tell that they are right.
type Slot struct {
	Handle     uint64 // store.Handle, 0: not in the store
	Sum        uint64
	Raw        uint32 // raw buffer number plus one, 0: none
	Generation uint32 // counts the slot's uses
	_          uint64
}
