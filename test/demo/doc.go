// Demo shows the main job: an unmodified redis in a container keeps three times
// its local memory budget, forks while pages are being evicted, and every byte is
// right. It does the same job with farpage and without, and compares.
//
// It needs root, runc, redis-server and farpage's built programs, and no daemon or
// registry. Its exit status says whether all held: 0 it did, 1 it did not, 130
// interrupted. Whatever happens, it leaves nothing behind.
//
// One job (job.go): a container with redis is started; values are filled in; one
// writer goes on writing some of them while redis forks to save (writer.go); every
// value is read back; the save is loaded into a second redis, which never knew
// farpage, and compared with what the values were at the moment of the fork.
package main
