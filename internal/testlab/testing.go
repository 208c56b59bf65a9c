package testlab

// TB has the methods that the lab needs of *testing.T, *testing.B or
// *testing.F. The package does not import testing because the demonstration
// links it.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// A T is a lab inside a test: its errors fail the test.
type T struct {
	*Lab
	tb TB
}

// New starts a lab on loopback and ephemeral ports. The end of the test closes
// it.
func New(tb TB) *T {
	tb.Helper()
	return NewWith(tb, Options{})
}

// NewWith is New with options.
func NewWith(tb TB, o Options) *T {
	tb.Helper()
	l, err := Start(o)
	must(tb, l, err)
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Fatalf("testlab: closing: %v", err)
		}
	})
	return &T{Lab: l, tb: tb}
}

// Set is DNS.Set.
func (t *T) Set(records ...string) {
	t.tb.Helper()
	if err := t.Lab.DNS.Set(records...); err != nil {
		t.tb.Fatalf("testlab: %v", err)
	}
}

// Domain is Lab.Domain.
func (t *T) Domain(name string, w With) *Domain {
	t.tb.Helper()
	d, err := t.Lab.Domain(name, w)
	return must(t.tb, d, err)
}

// PolicyServer is Lab.PolicyServer.
func (t *T) PolicyServer(addr string) *PolicyServer {
	t.tb.Helper()
	s, err := t.Lab.PolicyServer(addr)
	return must(t.tb, s, err)
}

// MailHost is Lab.MailHost.
func (t *T) MailHost(name, addr string) *MailHost {
	t.tb.Helper()
	m, err := t.Lab.MailHost(name, addr)
	return must(t.tb, m, err)
}

func must[V any](tb TB, v V, err error) V {
	tb.Helper()
	if err != nil {
		tb.Fatalf("testlab: %v", err)
	}
	return v
}
