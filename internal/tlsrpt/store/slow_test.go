//go:build slow

package store_test

import "testing"

func TestAMillionDomainsLeaveTheCountsOfHonestOnesRight(t *testing.T) {
	manyDomains(t, 1_000_000, 48<<20)
}

func TestAMillionDetailsAreFoldedIntoAHundred(t *testing.T) { manyDetails(t, 1_000_000) }
