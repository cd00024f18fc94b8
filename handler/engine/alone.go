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
	living, status := 0, uint8(0)
	for _, tid := range tids[:n] {
		ended, s := target.Zombie(p.task, tid)
		if ended {
			status = s // the process's, if the last task to end repeats it
		} else {
			living++
		}
	}
	if n == 2 && living == 1 {
		p.pipe.Stop(status)
	}
}
