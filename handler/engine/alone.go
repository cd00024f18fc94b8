package engine

import (
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
)

// leaveAlone lets a helper go that is the last task of its process: a program whose
// only thread ends by a bare exit(2), not by exit_group(2), would never end.
func (e *Engine) leaveAlone(p *process) {
	if !p.has(state.FlagReady) || p.has(state.FlagHungUp) || p.task < 0 {
		return
	}
	var tids [3]int32
	n, more, err := target.Tasks(p.task, tids[:])
	if err != nil || more || n > 2 {
		return
	}
	living := 0
	for _, tid := range tids[:n] {
		if !target.Zombie(p.task, tid) {
			living++
		}
	}
	if living == 1 {
		p.pipe.Stop()
	}
}
