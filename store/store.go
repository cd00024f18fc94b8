// Package store keeps far pages. A Store is one place (compressed RAM, a slot
// file, ...); a Space is the part of it that belongs to one container. The
// agent's fault path never waits for a store: Put and Get only start work and
// report its end through SpaceConfig.Done, and TryGet answers at once or not at
// all.
//
// A store does not check what it keeps: the agent checksums each page over its
// bytes, container, slot and generation (see Sum) before Put and after Get, so a
// store that loses, flips or mixes up pages is found out, whichever it is.
package store

import "errors"

// PageSize is the size in bytes of every page that a store takes and gives.
const PageSize = 4096

// ErrFull says that a store has no room for another page. The page stays where
// it is; eviction stops until something is freed.
var ErrFull = errors.New("store: full")

// Handle names one stored page inside one Space. It is chosen by the store,
// opaque to everybody else, kept in the agent's crash-safe state, and never 0.
// Pages of equal content may get the same handle when they need no room; each
// of them is freed.
type Handle uint64

// Op is one page on its way into or out of a store. The caller owns it and its
// Page again once Done was called with it.
type Op struct {
	Handle Handle // Put: set by the store on success; Get: which page
	Page   []byte // PageSize bytes; read by Put, filled by Get
	Err    error  // nil, ErrFull or what failed
	Tag    uint64 // the caller's own; the store does not look at it
	Write  bool   // set by Put, cleared by Get: which of the two has ended
}

// SpaceConfig is what a store needs to open one container's part.
type SpaceConfig struct {
	// ID is the container's id.
	ID string
	// Arena is shared memory that outlives the agent process, zero when the
	// container is new. Only stores in RAM use it. It may be much larger than
	// what is ever used: pages of it cost nothing until they are written.
	Arena []byte
	// Release gives the memory behind Arena[offset:offset+length] back to the
	// kernel; it reads as zeros afterwards. Offsets in bytes, multiples of
	// PageSize.
	Release func(offset, length int64) error
	// Live are the handles that are in use, after an agent's death; everything
	// else in the space is free. A handle that this store cannot have given, or
	// that contradicts another one, is left out: the space opens all the same,
	// and reading that page gives an error or bytes that fail their checksum.
	Live []Handle
	// Done is called exactly once for each Op given to Put or Get, from any
	// goroutine, never from inside Put or Get themselves. It does not block.
	Done func(*Op)
}

// Store is a place for far pages, shared by all containers that name it.
type Store interface {
	// Open opens the part of one container, new or taken over.
	Open(SpaceConfig) (Space, error)
	// Recovered says that every container which had something here when the store
	// was opened is open by now, with its Live handles: what none of them has is
	// free. It is to be called once, after OpenURL, by every agent, at once by one
	// that took nothing over. Where one container could not be opened it must not
	// be called: its pages stay, and what is stored takes other room. Until then a
	// store may say ErrFull that has room. Containers opened later have no Live
	// handles.
	Recovered()
	// String is the URL it was opened by.
	String() string
	// Close waits for what is under way. No Space may be used afterwards.
	Close() error
}

// Space is one container's part of a store. Its methods may be called from one
// goroutine at a time; Done runs beside them.
type Space interface {
	// Put starts storing op.Page under a new handle. It does not block.
	Put(op *Op)
	// Get starts reading op.Handle into op.Page. It does not block.
	Get(op *Op)
	// TryGet reads h into page if that needs no waiting at all, and allocates
	// nothing. ok is false when the page has to be asked for with Get, and when
	// err says that the page is lost.
	TryGet(h Handle, page []byte) (ok bool, err error)
	// Free gives h up. It does not block. h must not be in use by a Get. To
	// free what is not in use is a mistake of the caller; a store ignores it.
	Free(h Handle)
	// Bytes says what the pages kept here cost, in bytes. What is freed may
	// count for a while, until its room is given back. It may be called at any
	// time from anywhere.
	Bytes() int64
	// Close waits until every Op has been reported and lets go of the space.
	// What is stored stays for the next Open where the place outlives it. It
	// must not be called from Done.
	Close() error
	// Discard is Close for a container that is no more: all that is stored is
	// freed, also what was reported too late for its Free. Handles need no Free.
	Discard() error
}
