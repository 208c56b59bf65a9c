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

// Limits of the DNS server.
const (
	maxQuestions   = 10_000  // the last questions kept
	maxCounted     = 200_000 // names and types with their own count; others count in the total only
	maxUDPAnswer   = 4096    // bytes, even if the client allows more
	udpBuffer      = 4 << 20 // bytes; prevents loss in a burst
	dnsIdle        = 30 * time.Second
	dnsPortTries   = 20 // attempts to find a port free for both UDP and TCP
	dnsCloseWithin = 5 * time.Second
)

// A Question is a question that the resolver received.
type Question struct {
	Name    string // as received, with the trailing dot
	Type    uint16
	TCP     bool
	AD, DO  bool   // both request the AD bit (RFC 6840, 5.7)
	UDPSize uint16 // from EDNS0; 0 without
}

// DNS is a recursive resolver with invented records, on UDP and TCP.
type DNS struct {
	Addr string // address and port
	records
	faults faults

	lab      *Lab
	udp, tcp *dns.Server

	mu    sync.Mutex
	asked map[nameType]int
	total int
	log   []Question // a ring buffer once full
	first int        // start of the ring
}

type nameType struct {
	name  string
	qtype uint16
}

func startDNS(l *Lab, addr string) (*DNS, error) {
	d := &DNS{lab: l, records: newRecords(), asked: make(map[nameType]int)}
	d.faults.at = make(map[nameType]fault)
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

// listenDNS listens on UDP and TCP at the same port.
func listenDNS(addr string) (net.PacketConn, net.Listener, error) {
	var err error
	for range dnsPortTries {
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			return nil, nil, err
		}
		var ln net.Listener
		if ln, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			pc.(*net.UDPConn).SetReadBuffer(udpBuffer) // the system may grant less
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
		found := d.find(q.name, q.qtype)
		f := d.faults.find(found.names, q.qtype)
		// Count last: a test that sees the count knows which fault was used.
		d.note(q, req, tcp)
		if f.how == Silent || f.how == SilentToEDNS && req.IsEdns0() != nil || !f.gate.wait(nil) {
			return
		}
		if f.how == ServFail {
			found = finding{rcode: dns.RcodeServerFailure}
		}
		m := d.reply(req, found)
		if !tcp {
			m.Truncate(udpSize(req))
		}
		w.WriteMsg(m) // the client may be gone
	}
}

// note counts and records a question; k is its canonical form.
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

// Asked returns how many questions for name and type ("TXT"; "" for any)
// arrived.
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

// Total returns the number of questions.
func (d *DNS) Total() int { return lockedGet(&d.mu, &d.total) }

// Questions returns the last 10,000 questions in order.
func (d *DNS) Questions() []Question {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Concat(d.log[d.first:], d.log[:d.first])
}

// Forget resets all counts and drops the recorded questions.
func (d *DNS) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.asked)
	d.total, d.first, d.log = 0, 0, nil
}

// reply returns the correct answer.
func (d *DNS) reply(req *dns.Msg, f finding) *dns.Msg {
	m := new(dns.Msg).SetReply(req)
	m.RecursionAvailable = true
	m.Compress = true
	m.Rcode = f.rcode
	m.Answer = f.answer
	if f.negative {
		m.Ns = []dns.RR{rootSOA}
	}
	opt := req.IsEdns0()
	if opt != nil {
		m.SetEdns0(maxUDPAnswer, opt.Do())
	}
	// RFC 6840, 5.8: set AD only where the client asked for it.
	wanted := req.AuthenticatedData || opt != nil && opt.Do()
	m.AuthenticatedData = wanted && f.signed && m.Rcode != dns.RcodeServerFailure
	return m
}

// udpSize returns the size limit of an answer over UDP.
func udpSize(req *dns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPAnswer)
	}
	return dns.MinMsgSize
}
