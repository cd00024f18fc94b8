package bundle

import "golang.org/x/sys/unix"

// HasMusl says whether an image has musl's loader. The way there may lead over symbolic
// links, which are the image's.
func HasMusl(root string) bool {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, "lib/ld-musl-x86_64.so.1", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
