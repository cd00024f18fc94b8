package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// A server that does not answer for so long hangs.
const redisPatience = time.Minute

// redisClient speaks the little of redis's protocol (RESP 2) that the tests use.
type redisClient struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

// dialRedis tries until the server listens.
func dialRedis(socket string, limit time.Duration) (*redisClient, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return &redisClient{conn: conn, in: bufio.NewReader(conn), out: bufio.NewWriter(conn)}, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

func (c *redisClient) close() error { return c.conn.Close() }

// send queues a command; receive flushes what is queued and reads one reply.
func (c *redisClient) send(words ...[]byte) {
	fmt.Fprintf(c.out, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(c.out, "$%d\r\n", len(word))
		c.out.Write(word)
		c.out.WriteString("\r\n") // bufio keeps the error for Flush
	}
}

func (c *redisClient) receive() ([]byte, error) {
	if err := c.conn.SetDeadline(time.Now().Add(redisPatience)); err != nil {
		return nil, err
	}
	if err := c.out.Flush(); err != nil {
		return nil, err
	}
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	line = bytes.TrimSuffix(line, []byte("\r\n"))
	if len(line) == 0 {
		return nil, errors.New("redis: empty reply")
	}
	switch line[0] {
	case '+', ':':
		return line[1:], nil
	case '-':
		return nil, fmt.Errorf("redis: %s", line[1:])
	case '$':
		return c.bulk(line[1:])
	}
	return nil, fmt.Errorf("redis: reply %q is of no known kind", line)
}

func (c *redisClient) bulk(length []byte) ([]byte, error) {
	size, err := strconv.Atoi(string(length))
	if err != nil || size < 0 {
		return nil, err // -1: there is no such key
	}
	value := make([]byte, size+2)
	if _, err := io.ReadFull(c.in, value); err != nil {
		return nil, err
	}
	return value[:size], nil
}

func (c *redisClient) do(words ...string) ([]byte, error) {
	sliced := make([][]byte, len(words))
	for i, word := range words {
		sliced[i] = []byte(word)
	}
	c.send(sliced...)
	return c.receive()
}
