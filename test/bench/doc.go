// Bench measures what farpage costs, and prints each measure beside what it has to
// be held against: the program alone, a C loop that answers the same faults, or the
// kernel's own swap. docs/performance.md says what each line means.
//
// One measure (faults.go, ...) starts the programs that it compares, has them do the
// same in turn, A B A B, and adds a pair of samples to the report for each turn. The
// programs do what a line on their standard input says (target.c) and time it
// themselves. What is printed was measured in this run; a measure that could not be
// taken makes the exit status 1.
//
// It needs root, gcc and farpage's built programs. Whatever happens, it leaves nothing
// behind.
package main
