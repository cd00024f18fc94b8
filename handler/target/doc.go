// Package target looks at other processes' memory from outside, through /proc and
// system calls that never block on a missing page: maps, flags, presence, who its
// threads are. It changes nothing there.
//
// Descriptors of /proc/PID/maps, pagemap and mem stay with the memory they were
// opened for, across exec and exit (fs/proc/base.c, proc_mem_open).
package target
