package stage

import "testing"

// MountRoot mounts the root of setup with that name, for tests without this
// package's MTAs.
func MountRoot(t *testing.T, name string) Root {
	t.Helper()
	return mountRoot(t, name)
}
