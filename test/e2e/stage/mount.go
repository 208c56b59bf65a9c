package stage

import "testing"

// MountRoot mounts the root that setup calls name, for tests that run
// something else in it than the MTAs of this package.
func MountRoot(t *testing.T, name string) Root {
	t.Helper()
	return mountRoot(t, name)
}
