package proc

import (
	"strings"
	"testing"
)

const (
	mountsV1 = `23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
`
	mountsHybrid = mountsV1 + `41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`
	mountsV2 = `23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
`
)

func TestTheMemoryCgroupIsFoundInEveryHierarchy(t *testing.T) {
	cases := map[string]struct {
		cgroups, mountinfo, want string
	}{
		"v1": {
			"5:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n", mountsV1, "/sys/fs/cgroup/memory/docker/abc",
		},
		"v1 with the controllers of one mount together": {
			"5:cpuset,memory:/a\n", strings.Replace(mountsV1, "rw,memory", "rw,cpuset,memory", 1), "/sys/fs/cgroup/memory/a",
		},
		"hybrid has memory on v1": {
			"5:memory:/a\n1:name=systemd:/s\n0::/other\n", mountsHybrid, "/sys/fs/cgroup/memory/a",
		},
		"v2": {
			"0::/system.slice/docker-abc.scope\n", mountsV2, "/sys/fs/cgroup/system.slice/docker-abc.scope",
		},
		"memory on v2 beside other controllers on v1": {
			"2:cpu,cpuacct:/c\n0::/a\n", strings.ReplaceAll(mountsHybrid, "rw,memory", "rw,devices"), "/sys/fs/cgroup/unified/a",
		},
		"the root": {
			"0::/\n", mountsV2, "/sys/fs/cgroup",
		},
		"a runtime inside of a container sees its subtree only": {
			"5:memory:/docker/outer/inner\n", strings.Replace(mountsV1, "0:32 /", "0:32 /docker/outer", 1), "/sys/fs/cgroup/memory/inner",
		},
		"a mount of another subtree is passed over": {
			"5:memory:/b/c\n", strings.Replace(mountsV1, "0:32 /", "0:32 /bb", 1) + "36 31 0:32 /b /mnt/memory\\040b rw - cgroup cgroup rw,memory\n", "/mnt/memory b/c",
		},
		"a name with a colon": {
			"0::/system.slice/a:b.scope\n", mountsV2, "/sys/fs/cgroup/system.slice/a:b.scope",
		},
	}
	for name, c := range cases {
		if got, err := memoryFolder(c.cgroups, c.mountinfo); err != nil || got != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWhereThereIsNoMemoryCgroupThatIsSaid(t *testing.T) {
	cases := map[string]struct {
		cgroups, mountinfo, want string
	}{
		"no cgroup at all":                     {"", mountsV2, "the container is in no memory cgroup"},
		"only others":                          {"2:cpu:/a\n", mountsV1, "the container is in no memory cgroup"},
		"the hierarchy is not mounted":         {"5:memory:/a\n", mountsV2, "no cgroup file system is mounted that holds it"},
		"outside of the cgroup namespace":      {"0::/../other\n", mountsV2, "/../other is not to be seen from here"},
		"outside of what is mounted":           {"5:memory:/bb\n", strings.Replace(mountsV1, "0:32 /", "0:32 /b", 1), "no cgroup file system"},
		"lines that no kernel writes are none": {"memory\n:\n", "x\n", "the container is in no memory cgroup"},
	}
	for name, c := range cases {
		if got, err := memoryFolder(c.cgroups, c.mountinfo); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzMemoryFolder looks for lines that make the readers of /proc panic.
func FuzzMemoryFolder(f *testing.F) {
	f.Add("5:memory:/a\n0::/b\n", mountsHybrid)
	f.Add("0::/..\n", mountsV2)
	f.Fuzz(func(t *testing.T, cgroups, mountinfo string) {
		folder, err := memoryFolder(cgroups, mountinfo)
		if err == nil && folder == "" {
			t.Fatal("neither a folder nor an error")
		}
	})
}
