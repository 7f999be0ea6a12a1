//go:build e2e && linux

package scale

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// floorVariable makes this program the one that only writes.
const floorVariable = "MANTA_SCALE_FLOOR"

func TestMain(m *testing.M) {
	if os.Getenv(floorVariable) != "" {
		if err := writeOnly(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// floor measures what no head can be below on this machine while each token goes out
// at once: the processor time of one write of so many bytes to a connection, by a
// program of one goroutine that does nothing else. It has as many connections as
// there are streams, and writes to one after the other at the rate of the tokens. Queued
// is the part of it until the kernel has the bytes, of a second run: the rest is their way
// through loopback, most of it the receiver's side, which loopback charges to the sender.
func floor(t *testing.T, bytes int, rate float64) (write, queued time.Duration) {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), floorVariable+"=1")
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	const rounds = 20
	fmt.Fprintln(in, bytes, *streams, rounds, time.Duration(float64(*streams)/rate*float64(time.Second)).Nanoseconds())
	answers := bufio.NewReader(out)
	var address string
	if _, err := fmt.Fscan(answers, &address); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range *streams {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() {
			_, _ = io.Copy(io.Discard, bufio.NewReader(conn)) // the writer's end is the end
			conn.Close()
		})
	}
	if _, err := fmt.Fscan(answers, (*int64)(&write), (*int64)(&queued)); err != nil {
		t.Fatal(err)
	}
	readers.Wait()
	if err := command.Wait(); err != nil {
		t.Fatal(err)
	}
	each := time.Duration(rounds * *streams)
	return write / each, queued / each
}

// writeOnly is the other side of floor.
func writeOnly() error {
	var size, count, rounds int
	var every time.Duration
	if _, err := fmt.Scan(&size, &count, &rounds, (*int64)(&every)); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	files := make([]*os.File, count)
	for i := range files {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		if files[i], err = conn.(*net.TCPConn).File(); err != nil {
			return err
		}
		conn.Close()
	}
	data := make([]byte, size)
	for _, flags := range []int{0, syscall.MSG_MORE} { // MSG_MORE: more is to come, don't send yet
		before := processorTime()
		for range rounds {
			next := time.Now().Add(every)
			for _, f := range files {
				if err := syscall.Sendto(int(f.Fd()), data, flags, nil); err != nil {
					return err
				}
			}
			pause(time.Until(next))
		}
		fmt.Println(int64(processorTime() - before))
	}
	return nil
}

func processorTime() time.Duration {
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used) // it fails for a bad argument alone
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
