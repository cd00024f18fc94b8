// Package handoff is the agent's side of shim/protocol.h: the messages of the
// hand-off, the channel through which the helper gets its commands, and passing
// descriptors over the container's socket. Everything that comes from there is an
// attacker's word.
package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Mirrors of shim/protocol.h; a test holds both against each other.
const (
	Magic       = 0x46504731
	Version     = 1
	MessageSize = 40

	Hello   = 1
	Device  = 2
	Uffd    = 3
	Channel = 4
	Ready   = 5
	Armed   = 6
	Notice  = 7

	PageSize     = 4096
	StagingPages = 64
	StackPages   = 8
	BatchPages   = 128
	RunsMax      = 64
	AreaAnchor   = PageSize
	AreaStaging  = AreaAnchor + PageSize + StackPages*PageSize
	AreaDrop     = AreaStaging + StagingPages*PageSize
	AreaChannel  = AreaDrop + StagingPages*PageSize
	ChannelBytes = PageSize + BatchPages*PageSize
	AreaBytes    = AreaChannel + ChannelBytes

	BellSilent   = 0
	BellRung     = 1
	BellRungWait = 2

	Pending = 0
	Done    = 1
	Stale   = 2
	Partial = 3
)

// ErrMessage says that bytes from a container are no message of this protocol.
var ErrMessage = errors.New("handoff: not a message of this protocol")

// Message mirrors struct fp_message.
type Message struct {
	Type  uint16
	Nonce uint64
	Area  uint64
	Tid   uint32
	Error int32
	Mode  uint64
}

// Append appends the message's bytes to b.
func (m Message) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, Magic)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, m.Type)
	b = binary.LittleEndian.AppendUint64(b, m.Nonce)
	b = binary.LittleEndian.AppendUint64(b, m.Area)
	b = binary.LittleEndian.AppendUint32(b, m.Tid)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Error))
	return binary.LittleEndian.AppendUint64(b, m.Mode)
}

// Parse decodes one message. What it accepts is well formed, not true.
func Parse(b []byte) (Message, error) {
	if len(b) != MessageSize {
		return Message{}, fmt.Errorf("%w: %d bytes, want %d", ErrMessage, len(b), MessageSize)
	}
	if magic := binary.LittleEndian.Uint32(b); magic != Magic {
		return Message{}, fmt.Errorf("%w: magic %#x, want %#x", ErrMessage, magic, Magic)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != Version {
		return Message{}, fmt.Errorf("%w: version %d, this agent speaks %d: restart the container to get the shim of this version", ErrMessage, v, Version)
	}
	m := Message{
		Type:  binary.LittleEndian.Uint16(b[6:]),
		Nonce: binary.LittleEndian.Uint64(b[8:]),
		Area:  binary.LittleEndian.Uint64(b[16:]),
		Tid:   binary.LittleEndian.Uint32(b[24:]),
		Error: int32(binary.LittleEndian.Uint32(b[28:])),
		Mode:  binary.LittleEndian.Uint64(b[32:]),
	}
	if m.Type < Hello || m.Type > Notice {
		return Message{}, fmt.Errorf("%w: type %d", ErrMessage, m.Type)
	}
	if m.Type == Hello && (m.Area%PageSize != 0 || m.Area < 1<<16 || m.Area > 1<<47-AreaBytes) {
		return Message{}, fmt.Errorf("%w: area %#x", ErrMessage, m.Area)
	}
	return m, nil
}
