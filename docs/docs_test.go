// Package docs holds README.md and docs/ against what is really there: links,
// commands and their flags, make targets, annotations.
package docs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/oci/policy"
	"sigs.k8s.io/yaml"
)

// root is the module's folder, seen from here.
const root = ".."

// page is one file of documentation.
type page struct {
	name   string // relative to root
	prose  []string
	blocks []block
}

// block is a fenced block of code.
type block struct {
	language string
	lines    []string
}

// pages reads README.md and docs/*.md.
func pages(t *testing.T) []page {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(names) == 0 {
		t.Fatalf("docs/*.md: %v, %v", names, err)
	}
	var all []page
	for _, name := range append(names, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		one := parse(string(text))
		one.name = relative
		all = append(all, one)
	}
	return all
}

// parse parts prose from fenced blocks, which may be indented.
func parse(text string) page {
	var p page
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		language, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !inside:
			p.blocks = append(p.blocks, block{language: language})
			inside = true
		case fence:
			inside = false
		case inside:
			last := &p.blocks[len(p.blocks)-1]
			last.lines = append(last.lines, line)
		default:
			p.prose = append(p.prose, line)
		}
	}
	return p
}

// spans are the `pieces of code` in prose.
func (p page) spans() []string {
	var found []string
	for _, match := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
		found = append(found, match[1])
	}
	return found
}

var (
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`^#+ +(.*)$`)
)

func TestRelativeLinksPointToWhatIsThere(t *testing.T) {
	all := pages(t)
	anchors := map[string][]string{}
	for _, p := range all {
		anchors[p.name] = p.anchors()
	}
	for _, p := range all {
		for _, match := range inlineLink.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
			link := match[1]
			if strings.Contains(link, "://") {
				continue
			}
			path, anchor, _ := strings.Cut(link, "#")
			to := p.name
			if path != "" {
				to = filepath.Join(filepath.Dir(p.name), path)
			}
			if strings.HasPrefix(to, "..") || filepath.IsAbs(path) {
				t.Errorf("%s: %s leads out of the repository", p.name, link)
				continue
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: %s: %v", p.name, link, err)
			}
			if anchor != "" && !slices.Contains(anchors[to], anchor) {
				t.Errorf("%s: %s: %s has no such heading", p.name, link, to)
			}
		}
	}
}

// anchors are the names that a page's headings get: small letters, digits and
// hyphens for blanks.
func (p page) anchors() []string {
	var found []string
	for _, line := range p.prose {
		if match := heading.FindStringSubmatch(line); match != nil {
			found = append(found, strings.Map(func(r rune) rune {
				switch {
				case r == ' ':
					return '-'
				case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
					return r
				}
				return -1
			}, strings.ToLower(match[1])))
		}
	}
	return found
}

// buildCommand builds a program of this module for one test.
func buildCommand(t *testing.T, name string) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, "shim", "lib", "libfarpage.so")); errors.Is(err, fs.ErrNotExist) {
		need.Skip(t, "the shim is not built: run `make build` first")
	}
	readSources(t)
	path := filepath.Join(t.TempDir(), name)
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./cmd/"+name)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build ./cmd/%s: %v\n%s", name, err, output)
	}
	return path
}

// readSources opens what the programs' flags are written in: `go test` takes a
// result from its cache until a file changes that the test itself has opened.
func readSources(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"cmd/*/*.go", "hook/*.go"} {
		sources, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil || len(sources) == 0 {
			t.Fatalf("%s: %v, %v", pattern, sources, err)
		}
		for _, source := range sources {
			if _, err := os.ReadFile(source); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// help is what a program prints for --help.
func help(t *testing.T, program string, words ...string) string {
	t.Helper()
	var complaint bytes.Buffer
	command := exec.Command(program, append(words, "--help")...)
	command.Stderr = &complaint
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%s %v --help: %v\n%s", program, words, err, &complaint)
	}
	return string(output)
}

var (
	helpCommand = regexp.MustCompile(`(?m)^  ([a-z]+) +[A-Z]`)
	helpFlag    = regexp.MustCompile(`(?m)^ +(?:-\w, )?(--?[a-z][a-z-]*)`)
)

func names(pattern *regexp.Regexp, text string) []string {
	var found []string
	for _, match := range pattern.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// commands are the subcommands of farpage with their flags.
func commands(t *testing.T) map[string][]string {
	t.Helper()
	farpage := buildCommand(t, "farpage")
	found := map[string][]string{}
	for _, name := range names(helpCommand, help(t, farpage)) {
		found[name] = names(helpFlag, help(t, farpage, name))
	}
	if len(found) < 2 {
		t.Fatalf("%s --help names the commands %v only", farpage, slices.Collect(maps.Keys(found)))
	}
	return found
}

// call takes a line of a shell apart: the words of its first command behind the
// program of that name, up to `--`. ok is false when it calls something else.
func call(line, program string) (words []string, ok bool) {
	fields := strings.Fields(line)
	if len(fields) > 0 && fields[0] == "sudo" {
		fields = fields[1:]
	}
	if len(fields) == 0 || filepath.Base(fields[0]) != program {
		return nil, false
	}
	for _, word := range fields[1:] {
		if word == "--" || strings.ContainsAny(word, "#|&;><") {
			break
		}
		words = append(words, word)
	}
	return words, true
}

func TestCommandsInTheDocumentationExistWithTheirFlags(t *testing.T) {
	known := commands(t)
	checked := 0
	check := func(where, line string) {
		words, ok := call(line, "farpage")
		if !ok || len(words) == 0 {
			return
		}
		checked++
		flags, exists := known[words[0]]
		if !exists {
			t.Errorf("%s: %q: there is no farpage %s", where, line, words[0])
			return
		}
		for _, word := range words[1:] {
			flag, _, _ := strings.Cut(word, "=")
			if strings.HasPrefix(flag, "-") && !slices.Contains(flags, flag) {
				t.Errorf("%s: %q: farpage %s has no %s", where, line, words[0], flag)
			}
		}
	}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "sh" {
				continue
			}
			for _, line := range b.lines {
				check(p.name, line)
			}
		}
		for _, span := range p.spans() {
			check(p.name, span)
		}
	}
	if checked < 5 {
		t.Errorf("only %d calls of farpage were found", checked)
	}
}

// Flags that stand alone in prose must be flags of some command.
func TestFlagsInProseExist(t *testing.T) {
	all := slices.Concat(slices.Collect(maps.Values(commands(t)))...)
	all = append(all, names(helpFlag, help(t, buildCommand(t, "farpage-runtime"), "--farpage-help"))...)
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			flag, _, _ := strings.Cut(span, " ")
			if strings.HasPrefix(flag, "--") && !slices.Contains(all, flag) {
				t.Errorf("%s: no command has %s", p.name, flag)
			}
		}
	}
}

var (
	makeTarget = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
	makeCall   = regexp.MustCompile(`^(?:sudo )?make ([a-z][a-z-]*)`)
)

func TestMakeTargetsInTheDocumentationExist(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := names(makeTarget, string(makefile))
	checked := 0
	check := func(where, text string) {
		match := makeCall.FindStringSubmatch(strings.TrimSpace(text))
		if match == nil {
			return
		}
		checked++
		if !slices.Contains(targets, match[1]) {
			t.Errorf("%s: %q: the Makefile has no %s", where, text, match[1])
		}
	}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			for _, line := range b.lines {
				check(p.name, line)
			}
		}
		for _, span := range p.spans() {
			check(p.name, span)
		}
	}
	if checked < 3 {
		t.Errorf("only %d calls of make were found", checked)
	}
}

// spec is what of a bundle's config.json is farpage's.
type spec struct {
	Annotations map[string]string `json:"annotations"`
	Hooks       map[string][]struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
	} `json:"hooks"`
}

func TestConfigurationInTheDocumentationIsRight(t *testing.T) {
	hook := buildCommand(t, "farpage-hook")
	flags := names(helpFlag, help(t, hook))
	checked := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "json" {
				continue
			}
			var s spec
			decoder := json.NewDecoder(strings.NewReader(strings.Join(b.lines, "\n")))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&s); err != nil {
				t.Errorf("%s: %v in\n%s", p.name, err, strings.Join(b.lines, "\n"))
				continue
			}
			checked++
			if _, optedIn, err := policy.Parse(s.Annotations, 0); err != nil || !optedIn {
				t.Errorf("%s: annotations %v: opted in %v, %v", p.name, s.Annotations, optedIn, err)
			}
			for stage, hooks := range s.Hooks {
				for _, h := range hooks {
					if filepath.Base(h.Path) != "farpage-hook" || len(h.Args) < 2 || h.Args[len(h.Args)-1] != stage {
						t.Errorf("%s: %s %q is not how farpage-hook is called at %s", p.name, h.Path, h.Args, stage)
					}
					for _, arg := range h.Args[1:] {
						// Go's flag package takes one hyphen or two.
						if strings.HasPrefix(arg, "-") && !slices.Contains(flags, "-"+strings.TrimLeft(arg, "-")) {
							t.Errorf("%s: farpage-hook has no %s", p.name, arg)
						}
					}
				}
			}
		}
	}
	if checked == 0 {
		t.Error("no block of JSON was found")
	}
}

// What is annotated in YAML, for whatever container, is what policy takes.
func TestYAMLInTheDocumentationIsRight(t *testing.T) {
	checked := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "yaml" {
				continue
			}
			var object struct {
				Metadata struct {
					Annotations map[string]string `json:"annotations"`
				} `json:"metadata"`
			}
			text := strings.Join(b.lines, "\n")
			if err := yaml.Unmarshal([]byte(text), &object); err != nil {
				t.Errorf("%s: %v in\n%s", p.name, err, text)
				continue
			}
			for key := range object.Metadata.Annotations {
				checked++
				_, container, _ := strings.Cut(key, "/")
				if _, optedIn, err := policy.Parse(policy.ForContainer(object.Metadata.Annotations, container), 0); err != nil || !optedIn {
					t.Errorf("%s: annotations %v for container %q: opted in %v, %v", p.name, object.Metadata.Annotations, container, optedIn, err)
				}
			}
		}
	}
	if checked == 0 {
		t.Error("no annotation in YAML was found")
	}
}

// Files of packaging/ that are named exist, and values of the chart that are set too.
func TestPackagingInTheDocumentationExists(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "packaging/helm/farpage/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	files, sets := 0, 0
	check := func(where, text string) {
		words := strings.Fields(text)
		for i, word := range words {
			if strings.HasPrefix(word, "packaging/") {
				files++
				if _, err := os.Stat(filepath.Join(root, word)); err != nil {
					t.Errorf("%s: %q: %v", where, text, err)
				}
			}
			if word != "--set" || i+1 == len(words) {
				continue
			}
			sets++
			name, _, _ := strings.Cut(words[i+1], "=")
			var at any = values
			for key := range strings.SplitSeq(name, ".") {
				table, _ := at.(map[string]any)
				if _, there := table[key]; !there {
					t.Errorf("%s: %q: the chart has no value %s", where, text, name)
				}
				at = table[key]
			}
		}
	}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			for _, line := range b.lines {
				check(p.name, line)
			}
		}
		for _, span := range p.spans() {
			check(p.name, span)
		}
	}
	if files == 0 || sets == 0 {
		t.Errorf("%d files and %d values were found", files, sets)
	}
}

func TestAnnotationsInTheDocumentationExist(t *testing.T) {
	known := []string{
		policy.KeyLocal, policy.KeyFar, policy.KeyStore, policy.KeyLow, policy.KeyHigh, policy.KeyRegions, policy.KeyOnFailure,
	}
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			key, _, _ := strings.Cut(span, "=") // a value
			key, _, _ = strings.Cut(key, "/")   // for one container of a pod
			if strings.HasPrefix(span, policy.Prefix) && !slices.Contains(known, key) {
				t.Errorf("%s: there is no annotation %s", p.name, span)
			}
		}
	}
}

func TestCallsAreToldFromOtherLines(t *testing.T) {
	for line, want := range map[string][]string{
		"sudo farpage run --local 32Mi -- python3 --version": {"run", "--local", "32Mi"},
		"sudo bin/farpage ps # --all":                        {"ps"},
		"farpage agent &":                                    {"agent"},
		"sudo farpage-hook --help":                           nil,
		"make farpage":                                       nil,
	} {
		if words, ok := call(line, "farpage"); ok != (want != nil) || !slices.Equal(words, want) {
			t.Errorf("%q: %q, %v; want %q", line, words, ok, want)
		}
	}
}
