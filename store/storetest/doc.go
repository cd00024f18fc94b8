// Package storetest says what every store.Store must do, as a table of checks
// (Run), and has stores that misbehave in a known way (Slow, Lossy, Full,
// WrongSlot), for the tests of those who use a store.
package storetest
