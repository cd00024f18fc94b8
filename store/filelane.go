package store

import "sync"

// How much goes on at one time. Reads are waited for, one by one: many workers, so
// that a page that takes the disk seconds holds up no other, up to this number.
// Writes are cheaper together: another worker is called only when there is enough
// for it to do, so that what comes while the first is busy becomes one write.
const (
	fileReaders   = 32
	fileWriters   = 4
	readTogether  = 16 // pages
	writeTogether = 64 // pages
)

// fileJob is an Op or, without one, a trim.
type fileJob struct {
	space *FileSpace
	op    *Op
}

// lane is a queue with workers of its own, so that one kind of job is not held up
// by another. All of it is guarded by the store's mu.
type lane struct {
	store   *File
	jobs    ring[fileJob]
	work    sync.Cond // there is a job, or the store closes
	idle    int       // workers that wait for work and are not called yet
	workers int
	most    int // workers
	batch   int // jobs that a worker takes at one time at most
	gather  int // jobs that wait for each busy worker before another is called
}

func (l *lane) init(f *File, most, batch, gather int) {
	l.store, l.most, l.batch, l.gather = f, most, batch, gather
	l.work.L = &f.mu
}

// push queues a job and calls a worker. Preconditions: store.mu.
func (l *lane) push(job fileJob) {
	l.jobs.push(job)
	if l.jobs.waiting <= l.gather*(l.workers-l.idle) {
		return
	}
	switch {
	case l.idle > 0:
		l.idle--
		l.work.Signal()
	case l.workers < l.most:
		l.workers++
		l.store.running.Go(l.run)
	}
}

// run is a worker.
func (l *lane) run() {
	f := l.store
	w := &fileWorker{store: f}
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		space := l.take(w)
		switch {
		case space != nil:
			f.mu.Unlock()
			n := len(w.ops)
			w.do(space)
			f.mu.Lock()
			if space.underWay -= n; space.underWay == 0 {
				f.ended.Broadcast()
			}
		case w.trim:
			f.mu.Unlock()
			f.trim()
			f.mu.Lock()
		case f.closing:
			return
		default:
			l.idle++
			l.work.Wait()
		}
	}
}

// take gives w the first job and those behind it that go with it: Puts of one
// container, or Gets of neighbouring blocks. Preconditions: store.mu.
func (l *lane) take(w *fileWorker) *FileSpace {
	w.ops, w.trim = w.ops[:0], false
	job, ok := l.jobs.pop()
	if !ok {
		return nil
	}
	if job.op == nil {
		w.trim = true
		return nil
	}
	w.ops = append(w.ops, job.op)
	for len(w.ops) < l.batch {
		next, ok := l.jobs.peek()
		if !ok || next.space != job.space || !next.op.Write && next.op.Handle != w.ops[len(w.ops)-1].Handle+1 {
			break
		}
		l.jobs.pop()
		w.ops = append(w.ops, next.op)
	}
	return job.space
}
