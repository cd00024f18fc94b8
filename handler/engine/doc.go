// Package engine is the heart of farpage: the fault and eviction engine of one
// container. One engine, one OS thread, one container: everything about a
// container's memory is decided on its engine's thread, in the order in which the
// kernel's events were read, and a container that makes a system call of its
// engine wait makes nobody else wait.
//
// A turn of Run: wait for descriptors, read events one by one into the ring, apply
// them, answer faults, take in what helpers have moved, look at how much is
// resident, and tell helpers what to move next. engine.go has the loop; events.go
// reading and applying; faults.go serving; evict.go choosing, issuing and
// collecting; slots.go far pages; handoff.go taking processes in; register.go what
// the uffd watches; resident.go how much is resident; recover.go going on after a
// dead agent.
package engine
