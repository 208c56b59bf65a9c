package tlsmap

import (
	"bytes"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// This file goes when the keeper holds the match list and the text apart.

// Prepare returns the stored match list, and the policy's fields behind a line end.
func Prepare(p *policy.Policy) []byte {
	b := append(MatchList(p), '\n')
	for _, f := range p.Fields {
		b = append(b, f.Key+": "+f.Value+"\n"...)
	}
	return b
}

func matchOf(h *keeper.Held) []byte {
	match, _, _ := bytes.Cut(h.Ready, []byte("\n"))
	return match
}

func textOf(h *keeper.Held) []byte {
	_, text, _ := bytes.Cut(h.Ready, []byte("\n"))
	return text
}
