package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const (
	datagrams       = 100_000 // of each measurement
	datagramSenders = 8       // processes
	datagramApart   = 200 * time.Microsecond
	datagramDomains = 1000
	kernelQueue     = 512 // net.unix.max_dgram_qlen
	printEvery      = 50 * time.Millisecond
)

// Sessions as libtlsrpt writes them.
const (
	sessionOf = `{"dpv": "1","d": "%[1]s","pr": "v=TLSRPTv1;rua=mailto:r@%[1]s","policies":[{"policy-type":2,"policy-domain": "%[1]s","policy-string":["version: STSv1","mode: enforce","mx: mx.%[1]s","max_age: 604800"],"mx-host":["mx.%[1]s"]`
	succeeded = `,"t":0,"f":0}]}`
	notSigned = `,"failure-details":[{"c":205,"s": "192.0.2.9","n": "mx.%[1]s","h": "250-mx.%[1]s\r\n250-PIPELINING\r\n250 STARTTLS","r": "192.0.2.1","f": "self-signed_certificate"}],"t":1,"f":1}]}`
)

// sessionDatagram returns a session; one in ten failed.
func sessionDatagram(i int) []byte {
	text := sessionOf + succeeded
	if i%10 == 9 {
		text = sessionOf + notSigned
	}
	return fmt.Appendf(nil, text, fmt.Sprintf("good%d.example", i%datagramDomains))
}

// collectedSessions measures the CPU time of the collector and the store for a datagram.
// A datagram that is lost is an error.
func collectedSessions(b *bench) (result, error) {
	ours, err := b.sessionsInto("collect", true)
	if err != nil {
		return result{}, err
	}
	limit, err := b.sessionsInto("receive", false)
	if err != nil {
		return result{}, err
	}
	return b.pairs(ours, limit, ratio)
}

// sessionsInto starts a side that prints how many datagrams it has dealt with.
func (b *bench) sessionsInto(side string, noneLost bool) (measure, error) {
	socket := filepath.Join(b.shop.dir, side+".sock")
	p, err := b.startSide(side, socket)
	if err != nil {
		return nil, err
	}
	got, want := 0, 0
	return func() (float64, error) {
		return p.cpuOf(datagrams, func() error {
			full, err := b.sendDatagrams(socket)
			if err == nil && full > 0 && noneLost {
				err = fmt.Errorf("the kernel's queue was full %d times: Postfix's datagrams would be lost", full)
			}
			for want += datagrams; err == nil && got < want; {
				got, err = p.number()
			}
			return err
		})
	}, nil
}

// sendDatagrams sends from processes of their own, and returns how often the kernel's
// queue was full.
func (b *bench) sendDatagrams(socket string) (full int, err error) {
	var senders []*process
	for range datagramSenders {
		p, err := b.startSide("send", socket)
		if err != nil {
			return 0, err
		}
		senders = append(senders, p)
	}
	for _, p := range senders {
		n, err := p.number()
		if err != nil {
			return 0, err
		}
		full += n
	}
	return full, nil
}

// number reads the next line that the side prints.
func (p *process) number() (int, error) {
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(line))
}

// sendSide sends its share. A datagram for which there is no room is sent again.
func sendSide(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	ready("-")
	full := 0
	for i := 0; i < datagrams/datagramSenders; time.Sleep(datagramApart) {
		switch _, err := unix.Write(fd, sessionDatagram(i)); err {
		case nil:
			i++
		case unix.EAGAIN:
			full++
		default:
			return err
		}
	}
	fmt.Println(full)
	return nil
}

// listenInNamespace makes a datagram socket in a network namespace of its own, where the
// kernel's queue is as our packages set it.
func listenInNamespace(path string) (conn *net.UnixConn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte(strconv.Itoa(kernelQueue)), 0); err != nil {
			return
		}
		conn, err = endpoint.ListenDatagrams(path, 0o600)
	}()
	<-done
	return conn, err
}

// collectSide runs the collector and its store.
func collectSide(args []string) error {
	conn, err := listenInNamespace(args[0])
	if err != nil {
		return err
	}
	s, err := store.Open(filepath.Join(filepath.Dir(args[0]), "sessions.db"), store.Options{})
	if err != nil {
		return err
	}
	c := collect.New(s, collect.Options{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	go s.Run(context.Background())
	go c.Run(context.Background())
	go c.Datagrams(context.Background(), conn, 0)
	ready(args[0])
	for last := uint64(0); ; time.Sleep(printEvery) {
		st := c.Stats()
		for why, n := range st.Dropped {
			if n > 0 {
				return fmt.Errorf("%d dropped: %s", n, why)
			}
		}
		if n := st.From[collect.Postfix].Successful + st.From[collect.Postfix].Failed; n > last {
			fmt.Println(n)
			last = n
		}
	}
}

// receiveSide receives and unmarshals, and does nothing else.
func receiveSide(args []string) error {
	conn, err := listenInNamespace(args[0])
	if err != nil {
		return err
	}
	var got atomic.Int64
	failed := make(chan error)
	go func() {
		buffer := make([]byte, collect.MaxDatagram)
		for {
			n, err := conn.Read(buffer)
			if err == nil {
				err = json.Unmarshal(buffer[:n], new(bareDatagram))
			}
			if err != nil {
				failed <- err
				return
			}
			got.Add(1)
		}
	}()
	ready(args[0])
	for last := int64(0); ; {
		select {
		case err := <-failed:
			return err
		case <-time.After(printEvery):
		}
		if n := got.Load(); n > last {
			fmt.Println(n)
			last = n
		}
	}
}

type bareDatagram struct {
	D        string `json:"d"`
	PR       string `json:"pr"`
	Policies []struct {
		Type    int      `json:"policy-type"`
		Domain  string   `json:"policy-domain"`
		Strings []string `json:"policy-string"`
		MXHosts []string `json:"mx-host"`
		Details []struct {
			C                int
			S, N, H, R, A, F string
		} `json:"failure-details"`
		T, F int
	}
}
