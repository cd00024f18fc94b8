package store

// SetMaxWorkers sets how many goroutines a Mem may start, whatever the host has.
func (m *Mem) SetMaxWorkers(n int) { m.maxWorkers = n }
