// Package agent runs a `farpage agent` of a test's or the demo's own: started,
// killed and started again, and ended with nothing left. Its keepers, which are
// nobody's children, are watched until they are gone.
package agent
