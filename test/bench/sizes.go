package main

import "time"

// sizes say how much is done in each measure.
type sizes struct {
	repetitions   int // of each pair
	faults        int // single faults, each timed
	restedFaults  int // the same, after a rest
	faultPages    int // of the regions that they are in
	runPages      int // evicted and read back in order
	singlePages   int // evicted one by one
	touchPages    int // touched for the first time
	spawns        int // programs started by a C parent
	forks         int
	forkedPages   int // resident in a parent that forks
	shellPrograms int // programs started by a shell's loop
	maps          int // mmap and munmap
	idle          time.Duration
	threadsMiB    int
	redisKeys     int
	redisGets     int
}

// Budgets of less than 256 MiB: there a program is armed when it starts, so that
// what is measured is the managed case. They are large enough that nothing is
// evicted but what the bench asks for.
const (
	budget    = "240Mi"
	pageBytes = 4096
)

var full = sizes{
	repetitions: 7, faults: 2000, restedFaults: 300, faultPages: 8192, runPages: 24576, singlePages: 8192, touchPages: 16384,
	spawns: 500, forks: 50, forkedPages: 16384, shellPrograms: 1000, maps: 1000,
	idle: 5 * time.Second, threadsMiB: 128, redisKeys: 65536, redisGets: 20000,
}

var quick = sizes{
	repetitions: 7, faults: 500, restedFaults: 60, faultPages: 2048, runPages: 8192, singlePages: 2048, touchPages: 4096,
	spawns: 50, forks: 10, forkedPages: 16384, shellPrograms: 50, maps: 200,
	idle: 2 * time.Second, threadsMiB: 24, redisKeys: 16384, redisGets: 4000,
}
