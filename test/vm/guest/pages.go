package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/farpage/farpage/api"
)

// pages are those whose commands are for a host.
var pages = []string{"engines.md", "kubernetes.md"}

// elsewhere is for a command that is tried by another test.
func elsewhere(*test, string) {}

// onPages is what is done with each command of the pages, as it stands there, in their order.
var onPages = map[string]func(t *test, command string){
	"make packages":                                                         elsewhere, // the package is there
	"sudo apt install ./dist/farpage_*.deb":                                 runsAsItStands,
	"sudo farpage install systemd --restart":                                runsAsItStands,
	"sudo farpage install docker --restart":                                 runsAsItStands,
	"docker run --runtime farpage --annotation io.farpage.local=64Mi redis": runsRedis("docker", "stop"),
	"sudo farpage install cdi":                                              installsCDI,
	"docker run --device farpage.io/local=64Mi redis":                       runsRedis("docker", "stop"),
	"sudo farpage install containerd --restart":                             runsAsItStands,
	"sudo ctr run --runc-binary /usr/bin/farpage-runtime --annotation io.farpage.local=64Mi IMAGE ID": runsRedis("ctr", "task", "kill"),
	"sudo farpage install podman":                                                                 runsAsItStands,
	"sudo podman run --annotation io.farpage.local=64Mi redis":                                    runsRedis("podman", "stop"),
	"sudo podman --runtime /usr/bin/farpage-runtime run --annotation io.farpage.local=64Mi redis": runsRedis("podman", "stop"),
	"sudo farpage install crio":                                                                   runsAsItStands,
	"sudo farpage install containerd --nri --restart":                                             installsNRI,
	// test/engines builds so.
	"sudo buildah build --isolation oci --runtime /usr/bin/farpage-runtime --runtime-flag farpage-annotation=io.farpage.local=64Mi .": elsewhere,
	// test/kubernetes renders the chart, and test/engines runs what it says by CRI.
	"make image IMAGE=registry.example/farpage:1": elsewhere,
	"helm install farpage packaging/helm/farpage --namespace farpage --create-namespace --set image.repository=registry.example/farpage --set image.tag=1": elsewhere,
	"kubectl apply -f packaging/kubernetes/farpage.yaml":                                          elsewhere,
	"kubectl --namespace farpage exec daemonset/farpage --container agent -- /usr/bin/farpage ps": elsewhere,
}

// testPages does what the pages say.
func testPages(t *test) {
	changed := []string{"/etc/docker/daemon.json", "/etc/containerd/config.toml"}
	before := map[string][]byte{}
	for _, path := range changed {
		text, err := os.ReadFile(path)
		if err != nil {
			t.fatalf("%v", err)
		}
		before[path] = text
	}
	t.must("docker", "import", "--change", `CMD ["redis-server","--save",""]`, filepath.Join(dir, "rootfs.tar"), "redis")
	t.must("podman", "import", "--quiet", "--change", `CMD ["redis-server","--save",""]`, filepath.Join(dir, "rootfs.tar"), "redis")
	t.must("sh", "-c", "docker save redis | ctr images import -")

	untried := map[string]bool{}
	for command := range onPages {
		untried[command] = true
	}
	for _, page := range pages {
		for _, command := range commandsOf(t, filepath.Join(dir, "docs", page)) {
			try, ok := onPages[command]
			if !ok {
				t.errorf("%s: nobody has tried `%s`", page, command)
				continue
			}
			delete(untried, command)
			try(t, command)
		}
	}
	for command := range untried {
		t.errorf("no page has `%s`", command)
	}

	for _, engine := range []string{"crio", "cdi"} {
		t.must("farpage", "uninstall", engine)
	}
	for path, text := range before {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.fatalf("%v", err)
		}
	}
	t.must("systemctl", "restart", "docker", "containerd")
	t.must("docker", "container", "prune", "--force")
	t.must("podman", "container", "prune", "--force")
	t.must("ctr", "containers", "delete", "redis")
	t.must("docker", "rmi", "redis")
	t.must("podman", "rmi", "redis")
	t.must("ctr", "images", "remove", ctrImage)
}

// commandsOf are the lines of the blocks of shell in a page.
func commandsOf(t *test, path string) (commands []string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.fatalf("%v", err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```sh"
		case inside && line != "":
			commands = append(commands, line)
		}
	}
	return commands
}

// shell runs a command of a page: as root already, where the page is read.
func (t *test) shell(command string) (string, error) {
	return t.try("sh", "-ec", `sudo() { "$@"; }; cd `+dir+"; "+command)
}

func runsAsItStands(t *test, command string) {
	if out, err := t.shell(command); err != nil {
		t.errorf("%s: %v\n%s", command, err, out)
	}
}

// installsCDI has Docker take devices, as the page says of one that is older than 28.
func installsCDI(t *test, command string) {
	runsAsItStands(t, command)
	const path = "/etc/docker/daemon.json"
	var settings map[string]any
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &settings)
	}
	if err != nil {
		t.fatalf("%v", err)
	}
	settings["features"] = map[string]bool{"cdi": true}
	if text, err = json.Marshal(settings); err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.fatalf("%v", err)
	}
	t.must("systemctl", "restart", "docker")
}

// installsNRI waits until the plugin is one of containerd's.
func installsNRI(t *test, command string) {
	runsAsItStands(t, command)
	t.wait("farpage-nri is connected", func() bool {
		out, _ := t.try("journalctl", "--no-pager", "--boot", "--output", "cat", "--unit", "farpage-nri")
		return strings.Contains(out, "connected")
	})
	t.contains("farpage-nri", t.must("systemctl", "is-active", "farpage-nri"), "active")
}

// ctrImage is what IMAGE stands for.
const ctrImage = "docker.io/library/redis:latest"

// asHere is what stands for names in the pages. This host has no network for podman.
var asHere = strings.NewReplacer("IMAGE", ctrImage, " ID", " redis", "podman run", "podman run --network none", "farpage-runtime run", "farpage-runtime run --network none")

// runsRedis starts a redis by the command, looks whether it is managed, and ends it by another.
func runsRedis(stop ...string) func(t *test, command string) {
	return func(t *test, command string) {
		ended := make(chan string, 1)
		go func() {
			out, err := t.shell(asHere.Replace(command))
			ended <- fmt.Sprintf("%v\n%s", err, out)
		}()
		var redis api.Container
		t.wait("`"+command+"` makes a managed redis", func() bool {
			select {
			case said := <-ended:
				t.fatalf("%s: %s", command, said)
			default:
			}
			for _, c := range t.list() {
				if c.BudgetBytes == 64<<20 && slices.ContainsFunc(c.ProcessList, func(p api.Process) bool {
					return p.State == "managed" && strings.HasPrefix(p.Command, "redis-server")
				}) {
					redis = c
				}
			}
			return redis.ID != ""
		})
		t.must(slices.Concat(stop, []string{redis.ID})...)
		<-ended // with the status of the signal
		t.expectEmpty()
	}
}
