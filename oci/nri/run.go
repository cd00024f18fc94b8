// Package nri is farpage-nri, a plugin of engines with NRI (containerd 1.7 and newer, CRI-O
// 1.26 and newer). It asks for mounts and environment only, because an engine's validators
// may refuse hooks: the container's folder at policy.MountPoint, and LD_PRELOAD.
//
// An engine goes on without a plugin that is not there. What was created meanwhile, and
// what could not be set up, is told to the agent with the reason.
package nri

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	agent "github.com/farpage/farpage/api"
	"github.com/sirupsen/logrus"
)

// DefaultSocket is where containerd and CRI-O listen for plugins.
const DefaultSocket = api.DefaultSocketPath

// Options are what an operator can set.
type Options struct {
	SocketDir string // the agent's
	Socket    string // the engine's
	Index     string // two digits: the order of the engine's plugins
	Log       *logrus.Logger
}

// How long until it is tried again to reach the engine, or the agent.
const (
	reconnectAfter = time.Second
	retellAfter    = 2 * time.Second
)

var twoDigits = regexp.MustCompile(`^[0-9]{2}$`)

// Run is the plugin, until ctx is done. The error is about Options.
func Run(ctx context.Context, o Options) error {
	if !twoDigits.MatchString(o.Index) {
		return fmt.Errorf("--index %q: two digits are wanted, the order among the engine's plugins", o.Index)
	}
	p := &plugin{agent: agent.NewClientIn(o.SocketDir), log: o.Log, refused: map[string]string{}, untold: map[string]wish{}}
	defer p.agent.Close()
	go p.retell(ctx)
	var said string
	for ctx.Err() == nil {
		err := p.connect(ctx, o)
		if ctx.Err() != nil {
			break
		}
		if err == nil {
			err = errors.New("the engine has closed the connection")
		}
		// Once: the engine may be away for long, or have no NRI.
		if text := err.Error(); text != said {
			said = text
			o.Log.Warnf("no engine on %s: %v; waiting for it (containerd before 2.0 listens only if its configuration has disable = false for the plugin io.containerd.nri.v1.nri)", o.Socket, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectAfter):
		}
	}
	return nil
}

// connect serves one connection to its end.
func (p *plugin) connect(ctx context.Context, o Options) error {
	s, err := stub.New(p, stub.WithPluginName("farpage"), stub.WithPluginIdx(o.Index), stub.WithSocketPath(o.Socket),
		stub.WithLogger(logger{o.Log}), stub.WithOnClose(func() {}))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// logger is what the stub logs to: what it says of each connection is for debugging.
type logger struct{ *logrus.Logger }

func (l logger) Debugf(_ context.Context, format string, args ...any) {
	l.Tracef(format, args...)
}

func (l logger) Infof(_ context.Context, format string, args ...any) {
	l.Logger.Debugf(format, args...)
}

// Warnf is for debugging too: it warns at each connection of versions that it does not know.
func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.Logger.Debugf(format, args...)
}

func (l logger) Errorf(_ context.Context, format string, args ...any) {
	l.Logger.Errorf(format, args...)
}
