// Package exim holds the files that an Exim includes, for those who print them.
// What they say is in docs/exim.md.
package exim

import _ "embed"

// The four parts, in the order of a configuration.
var (
	//go:embed macros
	Macros string
	//go:embed routers
	Routers string
	//go:embed transport
	Transport string
	//go:embed retry
	Retry string
)
