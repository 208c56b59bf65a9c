package resolver

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A fake is a name server on a loopback address, UDP and TCP at one port,
// that answers with bytes: as many datagrams, or as much of a stream, as its
// functions return. Without a TCP function nobody listens there.
type fake struct {
	udp func(q *dns.Msg) [][]byte
	tcp func(q *dns.Msg) []byte

	addr netip.AddrPort
	mu   sync.Mutex
	seen []*dns.Msg
	from []netip.AddrPort // the senders of seen
}

// start runs f at host, on the given port or, if that is 0, on a free one.
func (f *fake) start(t *testing.T, host string, port uint16) *fake {
	t.Helper()
	pc, l := f.listen(t, host, port)
	f.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	var running sync.WaitGroup
	running.Go(func() { f.serveUDP(pc) })
	if l != nil {
		running.Go(func() { f.serveTCP(l) })
	}
	t.Cleanup(func() {
		pc.Close()
		if l != nil {
			l.Close()
		}
		running.Wait()
	})
	return f
}

func (f *fake) listen(t *testing.T, host string, port uint16) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		at := netip.AddrPortFrom(netip.MustParseAddr(host), port).String()
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		if f.tcp == nil {
			return pc, nil
		}
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		pc.Close() // the port is taken for TCP: try another
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (f *fake) serveUDP(pc net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		q := f.note(buf[:n], from)
		if q == nil || f.udp == nil {
			continue
		}
		for _, b := range f.udp(q) {
			pc.WriteTo(b, from)
		}
	}
}

func (f *fake) serveTCP(l net.Listener) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(conn, b); err != nil {
				return
			}
			answer := f.tcp(f.note(b, conn.RemoteAddr()))
			conn.Write(answer)
			if len(answer) == 0 { // a stall: until the client goes away
				io.Copy(io.Discard, conn)
			}
		})
	}
}

func (f *fake) note(b []byte, from net.Addr) *dns.Msg {
	q := new(dns.Msg)
	if q.Unpack(b) != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, q)
	f.from = append(f.from, netip.MustParseAddrPort(from.String()))
	return q
}

// questions returns what the server was asked so far.
func (f *fake) questions() []*dns.Msg {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*dns.Msg(nil), f.seen...)
}

// reply returns an answer to q with these records, in zone file format, as
// its answer section.
func reply(q *dns.Msg, rcode int, records ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, rcode)
	m.RecursionAvailable = true
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	if q.IsEdns0() != nil {
		m.SetEdns0(udpSize, false)
	}
	return m
}

func withAD(m *dns.Msg) *dns.Msg {
	m.AuthenticatedData = true
	return m
}

func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// zone returns a server's function that answers from a table of names (with a
// trailing dot): records by name, those of the asked type and CNAMEs as the
// answer, a SOA as the denial; NXDOMAIN for other names. All of it with AD if
// ad is set.
func zone(ad bool, table map[string][]string) func(q *dns.Msg) [][]byte {
	return func(q *dns.Msg) [][]byte {
		name := dns.CanonicalName(q.Question[0].Name)
		records, ok := table[name]
		rcode := dns.RcodeSuccess
		if !ok {
			rcode = dns.RcodeNameError
		}
		all := reply(q, rcode, records...)
		m := reply(q, rcode)
		m.Ns = all.Ns
		for _, rr := range all.Answer {
			if t := rr.Header().Rrtype; t == q.Question[0].Qtype || t == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
		}
		m.AuthenticatedData = ad
		return [][]byte{pack(m)}
	}
}

// resolverFor returns a resolver that asks these servers, with a time-out that
// is short, since some of them are silent, but not so short that a busy
// machine misses an answer that comes.
func resolverFor(t *testing.T, c Config, servers ...*fake) *Resolver {
	t.Helper()
	for _, s := range servers {
		c.Servers = append(c.Servers, s.addr)
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// silence is the time-out where nothing comes: short, and yet long enough for
// another server, on a busy machine, to answer within it.
const silence = 500 * time.Millisecond
