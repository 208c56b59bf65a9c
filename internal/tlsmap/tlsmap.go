// Package tlsmap answers an MTA's lookups: it makes a policy domain of the
// next-hop, decides what the domain's policy means for the map that was asked,
// and renders the reply in the MTA's terms: Postfix's TLS policy
// (postconf(5), smtp_tls_policy_maps) under RFC 8461.
//
// It does no I/O and holds no policies: the keeper does. What a reply needs is
// prepared once, when a policy is stored (Prepare), so that answering is a few
// appends; a reply once made is kept on the keeper's entry.
//
// Every byte that comes from the network is checked here again before it is
// rendered, whatever the parser promises: a policy must not be able to say
// anything to the MTA but which hosts match.
package tlsmap
