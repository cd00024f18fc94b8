package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const answerLimit = time.Minute

// program is a target (target.c) that waits for commands, and all that was started
// for it.
type program struct {
	group  *programGroup
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errout bytes.Buffer
	pid    int         // the target's own
	helper *exec.Cmd   // the C loop, nil
	agent  *farAgent   // nil: not under farpage
	cancel func() bool // of what kills it when the context ends
}

// answer is what a target says: times in ns, and counts.
type answer map[string]int64

// native starts a target as it is, with more variables in its environment.
func (b *bench) native(ctx context.Context, environment ...string) (*program, error) {
	return b.start(ctx, nil, environment, filepath.Join(b.dir, "target"))
}

// managed starts a target under farpage, and waits until it is taken in.
func (b *bench) managed(ctx context.Context) (*program, error) {
	p, err := b.start(ctx, nil, nil, b.farpage, "run", "--local", budget, "--", filepath.Join(b.dir, "target"))
	if err != nil {
		return nil, err
	}
	if p.agent, err = findAgent(ctx, p.pid); err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

// looped starts a target whose faults the C loop answers.
func (b *bench) looped(ctx context.Context, pages int) (*program, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "loop"), os.NewFile(uintptr(ends[1]), "target")
	defer ours.Close()
	defer theirs.Close()
	p, err := b.start(ctx, []*os.File{theirs}, nil, filepath.Join(b.dir, "target"), "loop")
	if err != nil {
		return nil, err
	}
	loop := exec.Command(filepath.Join(b.dir, "loop"), strconv.Itoa(pages))
	loop.ExtraFiles = []*os.File{ours}
	loop.Stderr = os.Stderr
	loop.SysProcAttr = p.group.Attributes()
	if err := loop.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the C loop: %w", err), p.end())
	}
	p.helper = loop
	return p, nil
}

func (b *bench) start(ctx context.Context, files []*os.File, environment []string, argv ...string) (*program, error) {
	g, err := b.newGroup()
	if err != nil {
		return nil, err
	}
	p := &program{group: g, cmd: exec.Command(argv[0], argv[1:]...)}
	p.cmd.Env = append(os.Environ(), environment...)
	p.cmd.ExtraFiles = files
	p.cmd.SysProcAttr = g.Attributes()
	p.cmd.Stderr = &p.errout
	p.cmd.WaitDelay = endLimit
	p.in, err = p.cmd.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	p.cancel = context.AfterFunc(ctx, g.stop)
	hello, err := p.read()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %v: %w", argv, err), p.end())
	}
	p.pid = int(hello["pid"])
	return p, nil
}

// do gives a command and waits for its answer.
func (p *program) do(format string, values ...any) (answer, error) {
	command := fmt.Sprintf(format, values...)
	if _, err := fmt.Fprintln(p.in, command); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", command, err, p.errout.Bytes())
	}
	a, err := p.read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return a, nil
}

// read reads one answer. A target that hangs is ended.
func (p *program) read() (answer, error) {
	late := time.AfterFunc(answerLimit, p.group.stop)
	text, err := p.out.ReadString('\n')
	if !late.Stop() {
		return nil, fmt.Errorf("no answer within %v", answerLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("the target has ended: %w", err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(text), "ok")
	if !ok {
		return nil, errors.New(text)
	}
	a := answer{}
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		if a[name], err = strconv.ParseInt(value, 10, 64); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// perPage is a total's part for each page, in µs.
func (a answer) perPage() float64 { return float64(a["total"]) / float64(a["pages"]) / 1e3 }

// us is a named time in µs.
func (a answer) us(name string) float64 { return float64(a[name]) / 1e3 }

// end ends the program in good order, and sees to it that nothing is left of it.
func (p *program) end() error {
	var errs []error
	_ = p.in.Close()
	late := time.AfterFunc(endLimit, p.group.stop)
	if err := p.cmd.Wait(); err != nil {
		errs = append(errs, fmt.Errorf("the target: %w: %s", err, p.errout.Bytes()))
	}
	late.Stop()
	p.cancel()
	if p.helper != nil {
		_ = p.helper.Process.Kill()
		_ = p.helper.Wait() // killed
	}
	if p.agent != nil {
		p.agent.client.Close()
	}
	return errors.Join(append(errs, p.group.end())...)
}
