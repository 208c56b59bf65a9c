package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

const manyReports = 10_000

// reportsOfADay measures the time in which the deliverer sends the reports of a day to an
// SMTP server on loopback. The domains' records come at once.
func reportsOfADay(b *bench) (result, error) {
	day := tlsrpt.DayOf(time.Now().AddDate(0, 0, -2))
	st, err := closedDay(filepath.Join(b.shop.dir, "reports.db"), day)
	if err != nil {
		return result{}, err
	}
	defer st.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return result{}, err
	}
	defer ln.Close()
	var accepted atomic.Int64
	go serveMail(ln, &accepted)
	reporter, err := report.New(report.Config{Organization: "Bench", Contact: "tls@reporter.test", Sender: "tls@reporter.test"})
	if err != nil {
		return result{}, err
	}
	d := deliver.New(deliver.Config{
		Store: st, Resolver: ruaAtOnce{}, Reporter: reporter, MaxPerDestination: 1000, Log: slog.New(slog.DiscardHandler),
		Mail: deliver.SMTP(ln.Addr().String(), "relay.reporter.test"),
	})
	begun := time.Now()
	err = d.Send(b.ctx, day, "", func(tlsrpt.Delivery) {})
	took := time.Since(begun)
	if err == nil && accepted.Load() != manyReports {
		err = fmt.Errorf("%d reports were accepted", accepted.Load())
	}
	return result{value: took.Seconds()}, err
}

// closedDay makes a store with a closed day.
func closedDay(path string, day tlsrpt.Day) (*store.Store, error) {
	now := day.Begin()
	st, err := store.Open(path, store.Options{Now: func() time.Time { return now }})
	if err != nil {
		return nil, err
	}
	var batch store.Batch
	batch.Reset(day)
	for i := range manyReports {
		batch.Add(daySession(i, manyReports))
	}
	err = st.Write(&batch)
	now = day.End().Add(time.Hour)
	return st, errors.Join(err, st.Upkeep(), st.Upkeep()) // the first merges, the second closes
}

// ruaAtOnce answers for _smtp._tls.DOMAIN with an address of the domain.
type ruaAtOnce struct{}

func (ruaAtOnce) Query(_ context.Context, name string, _ resolver.Type) (*resolver.Answer, error) {
	domain := strings.TrimPrefix(name, "_smtp._tls.")
	return &resolver.Answer{Name: name, Texts: []string{"v=TLSRPTv1; rua=mailto:tls@" + domain}}, nil
}

// serveMail accepts all mail.
func serveMail(ln net.Listener, accepted *atomic.Int64) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprint(conn, "220 mx ESMTP\r\n")
			data := false
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				switch line := lines.Text(); {
				case data && line != ".":
					continue
				case data:
					data = false
					accepted.Add(1)
				case line == "DATA":
					data = true
					fmt.Fprint(conn, "354 go on\r\n")
					continue
				}
				fmt.Fprint(conn, "250 ok\r\n")
			}
		}()
	}
}
