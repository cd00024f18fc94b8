package engine

import (
	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
)

// Stats returns the container's statistics. To be called through Ask.
func (e *Engine) Stats() api.Container {
	c := &e.mem.Header.Counters
	out := api.Container{Stats: api.Stats{
		Schema: 1, ID: e.cfg.ID, Name: e.cfg.Name, Armed: true,
		BudgetBytes: e.budget * space.PageSize, ResidentBytes: max(0, e.resident) * space.PageSize,
		ResidentPeakBytes: int64(c.ResidentPeak),
		FarBytes:          e.slots.live * space.PageSize, FarLimitBytes: e.cfg.Policy.FarBytes,
		FarLimitHits: int64(c.FarLimitHits), StoreBytes: e.slots.space.Bytes(),
		Forks: int64(c.Forks), Execs: int64(c.Execs),
		Faults: api.Faults{
			Total: int64(c.Faults), ServedFar: int64(c.ServedFar), ServedZero: int64(c.ServedZero),
			Unexplained: int64(c.Unexplained), P50Us: percentile(&c.Latency, 50), P99Us: percentile(&c.Latency, 99),
		},
		StallUs: int64(c.StallUs), EvictedPages: int64(c.Evicted), RestoredPages: int64(c.Restored),
		PrefetchedPages: int64(c.Prefetched),
		Errors: api.Errors{
			Store: int64(c.StoreErrors), Checksum: int64(c.ChecksumErrors), Protocol: int64(c.ProtocolErrors),
		},
	}}
	touched := int64(0)
	for _, p := range e.live {
		for _, leaf := range p.table.Leaves() {
			for _, entry := range leaf {
				if s := entry.State(); s == space.InFlight || s == space.Touched && !entry.Refused() {
					touched++
				}
			}
		}
		proc := api.Process{Pid: int(p.rec.Pid), Command: p.command, State: "managed", Reason: p.reason}
		if p.has(state.FlagHungUp) || !p.has(state.FlagReady) {
			if proc.Reason == "" {
				proc.Reason = "served, not evicted: it has no helper"
			}
		}
		out.ProcessList = append(out.ProcessList, proc)
	}
	out.UnevictableBytes = max(0, e.measured-touched*space.PageSize)
	out.Processes = api.ProcessCount{Managed: int64(len(e.live)), Exited: int64(c.Exited)}
	return out
}

// percentile of the fault times, as the top of its bucket, in microseconds.
func percentile(buckets *[40]uint64, percent uint64) int64 {
	total := uint64(0)
	for _, n := range buckets {
		total += n
	}
	sum := uint64(0)
	for i, n := range buckets {
		if sum += n; n > 0 && sum*100 >= total*percent {
			return bucketTop(i)
		}
	}
	return 0
}
