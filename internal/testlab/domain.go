package testlab

import (
	"fmt"
	"strings"
	"time"
)

// With configures a domain. The zero value has one MX host with STARTTLS and a
// good certificate, and an enforced policy that lists it.
type With struct {
	Mode   string        // default "enforce"
	MaxAge time.Duration // default a week
	MX     []string      // mx patterns; default the names of the mail hosts
	Policy string        // text of the policy; default made of the three above
	ID     string        // of the TXT record; default "1"
	TTL    uint32        // of the domain's DNS records, in seconds; default 300
	Signed bool          // the zone is signed

	NoRecord     bool          // no TXT record
	NoPolicyHost bool          // no policy host, and no address for its name
	NoPolicy     bool          // a domain without MTA-STS: neither record nor host
	Server       *PolicyServer // default a new server
	PolicyCert   CertKind
	PolicyFault  PolicyFault

	Mail      []*MailHost // MX hosts, most preferred first; default a new host mx1.DOMAIN
	NoMail    bool        // the MX record names mx1.DOMAIN at an address without a listener
	MailCert  CertKind    // of the default mail host
	MailFault MailFault   // of the default mail host
}

// A Domain is a domain with its hosts.
type Domain struct {
	Name   string
	Policy *PolicyHost // nil if there is no policy host
	Mail   []*MailHost

	lab *Lab
	ttl uint32
}

// Domain sets up a domain: MX and address records, mail hosts, the TXT record
// at _mta-sts and the policy host.
func (l *Lab) Domain(name string, w With) (*Domain, error) {
	d := &Domain{Name: strings.ToLower(name), lab: l, ttl: w.TTL}
	if d.ttl == 0 {
		d.ttl = defaultTTL
	}
	if w.Signed {
		l.DNS.Sign(d.Name, true)
	}
	if err := d.addMail(w); err != nil {
		return nil, fmt.Errorf("setting up %s: %w", name, err)
	}
	if err := d.addPolicy(w); err != nil {
		return nil, fmt.Errorf("setting up %s: %w", name, err)
	}
	return d, nil
}

func (d *Domain) addMail(w With) error {
	d.Mail = w.Mail
	own := "mx1." + d.Name
	switch {
	case w.NoMail:
		a, err := d.lab.NextAddr()
		if err != nil {
			return err
		}
		return d.lab.DNS.Set(
			fmt.Sprintf("%s. %d IN MX 10 %s.", d.Name, d.ttl, own),
			fmt.Sprintf("%s. %d IN A %s", own, d.ttl, a))
	case len(w.Mail) == 0:
		m, err := d.lab.MailHost(own, "")
		if err != nil {
			return err
		}
		if err := m.Present(w.MailCert); err != nil {
			return err
		}
		m.Behave(w.MailFault)
		d.Mail = []*MailHost{m}
	}
	return d.SetMX(d.Mail...)
}

// SetMX sets the domain's MX hosts, most preferred first.
func (d *Domain) SetMX(hosts ...*MailHost) error {
	records := make([]string, len(hosts))
	for i, m := range hosts {
		records[i] = fmt.Sprintf("%s. %d IN MX %d %s.", d.Name, d.ttl, 10*(i+1), m.Name)
	}
	return d.lab.DNS.Set(records...)
}

func (d *Domain) addPolicy(w With) error {
	if w.NoPolicy {
		return nil
	}
	if !w.NoRecord {
		id := w.ID
		if id == "" {
			id = "1"
		}
		d.SetID(id)
	}
	if w.NoPolicyHost {
		return nil
	}
	s := w.Server
	if s == nil {
		var err error
		if s, err = d.lab.PolicyServer(""); err != nil {
			return err
		}
	}
	h, err := s.Host("mta-sts." + d.Name)
	if err != nil {
		return err
	}
	if w.PolicyCert != CertGood {
		if err := h.Present(w.PolicyCert); err != nil {
			return err
		}
	}
	h.Behave(w.PolicyFault)
	h.SetPolicy(d.policy(w))
	d.Policy = h
	return d.lab.DNS.Set(addressRecord(h.Name, d.ttl, s.Addr))
}

func (d *Domain) policy(w With) string {
	if w.Policy != "" {
		return w.Policy
	}
	mode, maxAge, mx := w.Mode, w.MaxAge, w.MX
	if mode == "" {
		mode = "enforce"
	}
	if maxAge == 0 {
		maxAge = 7 * 24 * time.Hour
	}
	if len(mx) == 0 {
		for _, m := range d.Mail {
			mx = append(mx, m.Name)
		}
	}
	if len(mx) == 0 {
		mx = []string{"mx1." + d.Name}
	}
	return PolicyText(mode, maxAge, mx...)
}

// PolicyText returns the text of a policy.
func PolicyText(mode string, maxAge time.Duration, mx ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: STSv1\r\nmode: %s\r\n", mode)
	for _, pattern := range mx {
		fmt.Fprintf(&b, "mx: %s\r\n", pattern)
	}
	fmt.Fprintf(&b, "max_age: %d\r\n", int64(maxAge/time.Second))
	return b.String()
}

// SetPolicy changes the policy and its id, the policy host first (RFC 8461,
// 8.1). The domain must have a policy host.
func (d *Domain) SetPolicy(text, id string) {
	d.Policy.SetPolicy(text)
	d.SetID(id)
}

// SetID replaces the TXT record by one with the id.
func (d *Domain) SetID(id string) { d.SetRecord("v=STSv1; id=" + id + ";") }

// SetRecord sets the TXT records at _mta-sts, valid or not.
func (d *Domain) SetRecord(texts ...string) {
	d.lab.DNS.SetTXT("_mta-sts."+d.Name, d.ttl, texts...)
}

// RemoveRecord removes the TXT record.
func (d *Domain) RemoveRecord() { d.SetRecord() }
