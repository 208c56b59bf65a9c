// Package exim embeds the files that Exim includes, for -recipe. docs/exim-reference.md
// explains them.
package exim

import _ "embed"

// In the order of Exim's configuration.
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
