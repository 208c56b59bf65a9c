package dane

// Stats are a Checker's numbers.
type Stats struct {
	Findings [NotValidating + 1]uint64 // made since the start, by State
	Held     int                       // next-hops of which something is held
	MXSets   int                       // domains whose MX hosts are held
	Kept     int                       // of those of which something is held, those that keep a state that nothing vouches for now
	Panics   uint64                    // survived
	Checking int                       // next-hops being checked
	Verdict  Verdict                   // of the last probe of the resolver as it is configured now

	LogLinesDropped uint64 // about single next-hops, for their number
}

// Stats returns the numbers. It asks nothing, and begins no probe.
func (c *Checker) Stats() Stats {
	s := Stats{LogLinesDropped: c.linesDropped.Load(), Held: c.found.length(), MXSets: c.mx.length(), Checking: len(c.slots), Panics: c.panics.Load(), Verdict: NotBelieved}
	c.found.each(func(_ NextHop, f Finding) {
		if f.Kept() {
			s.Kept++
		}
	})
	for i := range c.counts {
		s.Findings[i] = c.counts[i].Load()
	}
	if c.resolver.TrustsAD() {
		c.prober.mu.Lock()
		s.Verdict = c.lastProbe().Verdict
		c.prober.mu.Unlock()
	}
	return s
}

// Name is a verdict in a word, as the label of a metric.
func (v Verdict) Name() string {
	switch v {
	case Validates:
		return "validates"
	case NoAD:
		return "no-ad"
	case FalseAD:
		return "false-ad"
	case NotBelieved:
		return "not-believed"
	}
	return "unknown"
}
