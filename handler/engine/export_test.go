package engine

// Hold keeps the engine's thread from all else until release is called; meanwhile its
// helpers believe that it has something to apply, or not.
func (e *Engine) Hold(unsettled bool) (release func()) {
	began, end := make(chan struct{}), make(chan struct{})
	e.mu.Lock()
	e.todo = append(e.todo, func() {
		for _, p := range e.live {
			p.unsettled(unsettled)
		}
		close(began)
		<-end
		for _, p := range e.live {
			p.unsettled(false)
		}
	})
	e.mu.Unlock()
	e.poller.wake()
	<-began
	return func() { close(end) }
}

// Settled asks a held engine whether it would register what its first process maps.
func (e *Engine) Settled() bool { return e.settledNow(e.live[0]) }
