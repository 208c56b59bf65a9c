package testlab

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of the DNS server.
const (
	maxQuestions   = 10_000  // questions remembered, the last ones
	maxCounted     = 200_000 // names and types counted apart; the rest is only in the total
	maxUDPAnswer   = 4096    // bytes, however much the question allows
	udpBuffer      = 4 << 20 // bytes, so that a burst of questions is not lost
	dnsIdle        = 30 * time.Second
	dnsPortTries   = 20 // to find a port that is free for UDP and TCP
	dnsCloseWithin = 5 * time.Second
)

// A Question is one that the resolver was asked.
type Question struct {
	Name    string // as asked, with its dot
	Type    uint16
	TCP     bool
	AD, DO  bool   // the bits that ask for the AD bit (RFC 6840, 5.7)
	UDPSize uint16 // of EDNS0; 0 without
}

// DNS is a recursive resolver over an invented world, on UDP and TCP.
type DNS struct {
	Addr string // address and port
	records
	faults faults

	lab      *Lab
	udp, tcp *dns.Server

	mu    sync.Mutex
	asked map[nameType]int
	total int
	log   []Question // a ring once it is full
	first int        // of the ring
}

type nameType struct {
	name  string
	qtype uint16
}

func startDNS(l *Lab, addr string) (*DNS, error) {
	d := &DNS{lab: l, records: newRecords(), asked: make(map[nameType]int)}
	d.faults.at = make(map[nameType]*Fault)
	pc, ln, err := listenDNS(addr)
	if err != nil {
		return nil, fmt.Errorf("starting the resolver: %w", err)
	}
	d.Addr = ln.Addr().String()
	started := make(chan struct{}, 2)
	server := func() *dns.Server {
		return &dns.Server{
			UDPSize:           maxUDPAnswer,
			IdleTimeout:       func() time.Duration { return dnsIdle },
			MaxTCPQueries:     -1,
			NotifyStartedFunc: func() { started <- struct{}{} },
		}
	}
	d.udp, d.tcp = server(), server()
	d.udp.PacketConn, d.udp.Handler = pc, d.handler(false)
	d.tcp.Listener, d.tcp.Handler = ln, d.handler(true)
	go d.udp.ActivateAndServe() // ends with Shutdown
	go d.tcp.ActivateAndServe()
	<-started
	<-started
	return d, nil
}

// listenDNS opens UDP and TCP on the same port.
func listenDNS(addr string) (net.PacketConn, net.Listener, error) {
	var err error
	for range dnsPortTries {
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			return nil, nil, err
		}
		var ln net.Listener
		if ln, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			pc.(*net.UDPConn).SetReadBuffer(udpBuffer) // as much of it as the system allows
			return pc, ln, nil
		}
		pc.Close()
	}
	return nil, nil, err
}

func (d *DNS) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), dnsCloseWithin)
	defer cancel()
	err := d.udp.ShutdownContext(ctx)
	if err2 := d.tcp.ShutdownContext(ctx); err == nil {
		err = err2
	}
	return err
}

func (d *DNS) handler(tcp bool) dns.HandlerFunc {
	return func(w dns.ResponseWriter, req *dns.Msg) {
		if len(req.Question) != 1 {
			return
		}
		q := nameType{dns.CanonicalName(req.Question[0].Name), req.Question[0].Qtype}
		stop, f := d.faults.forQuestion(q)
		found := d.find(q.name, q.qtype, stop)
		if f == nil && !stop {
			f = d.faults.onTheWay(found.names[1:], q.qtype)
		}
		// Counted last: who sees it counted knows which fault it took.
		d.note(q, req, tcp)
		if f != nil && !d.delay(f) {
			return
		}
		d.send(w, req, d.reply(req, found), f, tcp)
	}
}

// note counts and remembers a question, k in canonical form.
func (d *DNS) note(k nameType, req *dns.Msg, tcp bool) {
	asked := Question{Name: req.Question[0].Name, Type: k.qtype, TCP: tcp, AD: req.AuthenticatedData}
	if opt := req.IsEdns0(); opt != nil {
		asked.DO, asked.UDPSize = opt.Do(), opt.UDPSize()
	}
	d.mu.Lock()
	d.total++
	if _, known := d.asked[k]; known || len(d.asked) < maxCounted {
		d.asked[k]++
	}
	if len(d.log) < maxQuestions {
		d.log = append(d.log, asked)
	} else {
		d.log[d.first] = asked
		d.first = (d.first + 1) % maxQuestions
	}
	d.mu.Unlock()
	d.lab.event()
}

// Asked returns how often name was asked for, of the type ("TXT"; "" is any).
func (d *DNS) Asked(name, qtype string) int {
	name = dns.CanonicalName(name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if qtype != "" {
		return d.asked[nameType{name, dns.StringToType[strings.ToUpper(qtype)]}]
	}
	n := 0
	for k, v := range d.asked {
		if k.name == name {
			n += v
		}
	}
	return n
}

// Total returns how many questions there were.
func (d *DNS) Total() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// Questions returns the last questions, in order; 10,000 at most.
func (d *DNS) Questions() []Question {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Concat(d.log[d.first:], d.log[:d.first])
}

// Forget sets all counts to zero and drops the questions remembered.
func (d *DNS) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.asked)
	d.total, d.first, d.log = 0, 0, nil
}

// reply makes the honest answer.
func (d *DNS) reply(req *dns.Msg, f finding) *dns.Msg {
	m := new(dns.Msg).SetReply(req)
	m.RecursionAvailable = true
	m.Compress = true
	m.Rcode = f.rcode
	m.Answer = f.answer
	if f.soa != nil {
		m.Ns = []dns.RR{f.soa}
	}
	opt := req.IsEdns0()
	if opt != nil {
		m.SetEdns0(maxUDPAnswer, opt.Do())
	}
	// RFC 6840, 5.8: the AD bit is for those who ask for it.
	wanted := req.AuthenticatedData || opt != nil && opt.Do()
	m.AuthenticatedData = wanted && f.signed && m.Rcode != dns.RcodeServerFailure
	return m
}

// udpSize returns how large an answer over UDP may be.
func udpSize(req *dns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPAnswer)
	}
	return dns.MinMsgSize
}
