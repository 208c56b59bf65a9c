//go:build slow

package cache_test

import "testing"

func TestADamagedFileKeepsWhatCanBeReadOfItHoweverItIsDamaged(t *testing.T) { damageMatrix(t, true) }
