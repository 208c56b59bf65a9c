package collect_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// The benchmark sends from processes of their own, so that their CPU time is not ours:
// this test binary, told by a variable where to send how many.
const senderVariable = "STS_TLSMAP_COLLECT_SENDER"

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(senderVariable); ok {
		if err := sendMany(what); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// sendMany waits for room, as Postfix does not: none is lost. One in ten is a failure.
func sendMany(what string) error {
	var n int
	var path string
	if _, err := fmt.Sscan(what, &n, &path); err != nil {
		return err
	}
	c, err := net.Dial("unixgram", path)
	for i := 0; err == nil && i < n; i++ {
		d := success
		if i%10 == 9 {
			d = failing(205, "self-signed_certificate")
		}
		_, err = c.Write([]byte(strings.ReplaceAll(d, "good.test", fmt.Sprintf("good%d.example", i%1000))))
	}
	return err
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// received has n datagrams sent to a socket by 8 processes, calls receive, and returns the CPU time
// of a datagram.
func received(b *testing.B, n int, receive func(conn *net.UnixConn)) time.Duration {
	path := filepath.Join(b.TempDir(), "socket", "tlsrpt.sock")
	conn, err := collect.Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	before := cpuTime(b)
	for range 8 {
		cmd := exec.CommandContext(b.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", senderVariable, n/8, path))
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		defer cmd.Wait()
	}
	receive(conn)
	return (cpuTime(b) - before) / time.Duration(n)
}

// go test -run - -bench CPUOfADatagram -benchtime 1x ./internal/tlsrpt/collect
//
// The collector, with the log written, beside a loop that receives and unmarshals.
func BenchmarkCPUOfADatagram(b *testing.B) {
	const n, pairs = 40_000, 7
	var ratios []float64
	var bare, whole []time.Duration
	for i := range pairs + 1 {
		x := received(b, n, func(conn *net.UnixConn) {
			buffer := make([]byte, collect.MaxDatagram)
			for range n {
				k, err := conn.Read(buffer)
				var v struct {
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
				if err != nil || json.Unmarshal(buffer[:k], &v) != nil {
					b.Fatal(err)
				}
			}
		})
		s, err := store.Open(filepath.Join(b.TempDir(), "reports.db"), store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		y := received(b, n, func(conn *net.UnixConn) {
			c := collect.New(conn, s, collect.Options{})
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go func() {
				for c.Stats().Datagrams < n && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			c.Run(ctx)
			if st := c.Stats(); st.Successful+st.Failed != n {
				b.Fatalf("%+v", st)
			}
		})
		merge := cpuTime(b)
		if err := s.Merge(); err != nil {
			b.Fatal(err)
		}
		merge = cpuTime(b) - merge
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		if i > 0 { // the first pair warms up
			bare, whole, ratios = append(bare, x), append(whole, y), append(ratios, float64(y)/float64(x))
			b.Logf("bare %v, collected %v, merged %v", x, y, merge/n)
		}
	}
	slices.Sort(ratios)
	slices.Sort(bare)
	slices.Sort(whole)
	b.ReportMetric(ratios[pairs/2], "ratio")
	b.ReportMetric(float64(bare[pairs/2]), "bare-ns/datagram")
	b.ReportMetric(float64(whole[pairs/2]), "collected-ns/datagram")
	b.ReportMetric(0, "ns/op")
}
