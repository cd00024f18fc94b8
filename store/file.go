package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/farpage/farpage/store/internal/blocks"
	"golang.org/x/sys/unix"
)

// File is the store "file:///path": one slot file for all containers. What is in
// it means nothing without the handles that the agent keeps in memory, so after a
// boot the whole file is free.
//
// After an agent's death it is not in the file which blocks are in use: each
// container's SpaceConfig.Live says so when it is opened, one after another. A
// block of a container that comes later must not be given to one that came first.
// Every block in use was written before its handle was reported, so it lies within
// the length that the file had when it was opened, after the last thread of the
// dead agent was gone: until Recovered only blocks beyond that are given out. No
// order of Open, Put and Free can break it, and eviction goes on meanwhile where
// the file may grow; where it may not, Put says ErrFull until Recovered.
//
// What was freed is overwritten, not wiped: a handle is reported when all of its
// page was written, so nobody has one that leads to old content. Holes are punched
// for the room only.
type File struct {
	spec     fileSpec
	file     slotFile
	header   fileHeader
	direct   bool
	buffered error
	limit    int64 // blocks

	mu       sync.Mutex
	blocks   *blocks.Map             // mu
	spaces   map[string]*FileSpace   // mu: open, by id
	left     map[string]blocks.Owner // mu: closed with something in them, by id
	last     blocks.Owner            // mu: the newest user
	gets     lane                    // mu
	puts     lane                    // mu
	trims    lane                    // mu
	trimming bool                    // mu: a trim is queued or runs
	returned sync.Cond               // on mu: blocks have come back from a trim
	ended    sync.Cond               // on mu: a space has nothing under way
	closing  bool                    // mu
	running  sync.WaitGroup

	lengthMu    sync.Mutex
	lengthBytes int64 // lengthMu: of the file

	unknownFrees atomic.Int64
	unknownLive  atomic.Int64
	punchErrors  atomic.Int64
	holesUnknown atomic.Bool // the file system knows no holes
}

// FileCounts are mistakes and faults that a File has seen and lived with.
type FileCounts struct {
	UnknownFrees int64 // Free of a handle that was not in use
	UnknownLive  int64 // handles in SpaceConfig.Live that were left out
	PunchErrors  int64 // ranges that the file system did not take back
	BadBlocks    int64 // that cannot be written; they are not used any more
}

// OpenFile opens the store of a URL file:///path?max=SIZE, with an error that says
// what to do when it cannot. Without max the disk is the limit. A file that is not
// there is made, readable by its owner only. It is this process's until Close or the
// process's end.
func OpenFile(url string) (*File, error) { return openFile(url, nil) }

// openFile puts wrap, unless it is nil, around the file once it is open.
func openFile(url string, wrap func(slotFile) slotFile) (*File, error) {
	spec, err := parseFileURL(url)
	if err != nil {
		return nil, err
	}
	opened, err := openSlotFile(spec)
	if err != nil {
		return nil, err
	}
	f := &File{
		spec: spec, file: opened.osFile, header: opened.header,
		direct: opened.direct, buffered: opened.buffered,
		limit:       blockLimit(spec.maxBlocks),
		spaces:      map[string]*FileSpace{},
		left:        map[string]blocks.Owner{},
		lengthBytes: opened.bytes,
	}
	if wrap != nil {
		f.file = wrap(f.file)
	}
	f.blocks = blocks.New((opened.bytes+PageSize-1)/PageSize, f.limit)
	f.returned.L = &f.mu
	f.ended.L = &f.mu
	f.gets.init(f, fileReaders, readTogether, 0)
	f.puts.init(f, fileWriters, writeTogether, writeTogether-1)
	f.trims.init(f, 1, 1, 0)
	return f, nil
}

// blockLimit is the first block that is not to be used. A write beyond the
// process's own limit would bring a signal (setrlimit(2), RLIMIT_FSIZE).
func blockLimit(maxBlocks int64) int64 {
	limit := int64(1) << blockBits
	if maxBlocks > 0 {
		limit = min(limit, maxBlocks+1)
	}
	var most unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &most); err == nil && most.Cur/PageSize < uint64(limit) {
		limit = int64(most.Cur / PageSize)
	}
	return limit
}

// String is the URL that it was opened by.
func (f *File) String() string { return f.spec.url }

// Buffered says why the file is not read and written with O_DIRECT; nil: it is.
// The page cache then holds a page for as long as its read or write takes.
func (f *File) Buffered() error { return f.buffered }

// Counts may be called at any time.
func (f *File) Counts() FileCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return FileCounts{
		UnknownFrees: f.unknownFrees.Load(),
		UnknownLive:  f.unknownLive.Load(),
		PunchErrors:  f.punchErrors.Load(),
		BadBlocks:    f.blocks.Retired(),
	}
}

// Open opens a container's part; its arena is not used. A container can be open
// once only.
func (f *File) Open(cfg SpaceConfig) (Space, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closing:
		return nil, ErrClosed
	case f.spaces[cfg.ID] != nil:
		return nil, fmt.Errorf("store %q: container %q is open already", f.spec.url, cfg.ID)
	}
	f.last++
	s := &FileSpace{store: f, id: cfg.ID, owner: f.last, done: cfg.Done, group: -1}
	before, was := f.left[cfg.ID]
	for _, h := range cfg.Live {
		block, ok := h.block(f.header.number)
		if ok && (was && f.blocks.Give(before, s.owner, block) || f.blocks.Claim(s.owner, block)) {
			s.pages.Add(1)
		} else {
			f.unknownLive.Add(1)
		}
	}
	if was {
		delete(f.left, cfg.ID)
		for at := f.blocks.FreeAll(before, 0); at != 0; {
			at = f.blocks.FreeAll(before, at)
		}
		f.queueTrim()
	}
	f.spaces[cfg.ID] = s
	return s, nil
}

// Recovered frees every block that no container has claimed.
func (f *File) Recovered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blocks.Settled() || f.closing {
		return
	}
	if f.blocks.Used() == 0 && f.empty() == nil {
		f.blocks = blocks.New(1, f.limit)
		return
	}
	f.blocks.Settle()
	f.queueTrim()
}

// empty cuts off all blocks at once. Preconditions: f.mu, nothing is in use or on
// its way.
func (f *File) empty() error {
	f.lengthMu.Lock()
	defer f.lengthMu.Unlock()
	err := f.file.Truncate(PageSize)
	if err == nil {
		f.lengthBytes = PageSize
	}
	return err
}

// Close waits for every Op of every space, and gives the file up.
func (f *File) Close() error {
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return ErrClosed
	}
	f.closing = true
	for _, l := range []*lane{&f.gets, &f.puts, &f.trims} {
		l.idle = 0
		l.work.Broadcast()
	}
	f.mu.Unlock()
	f.running.Wait()

	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.blocks.Used() == 0 && f.blocks.Settled() {
		err = f.empty() // what is left of it is of no use to anybody
	}
	f.header.owner = fileOwner{}
	return errors.Join(err, writeHeader(f.file, f.header), f.file.Close())
}
