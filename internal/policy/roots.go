package policy

import (
	"crypto/x509"
	"fmt"
	"os"
)

// LoadRoots returns the authorities that policy hosts' certificates are
// checked against: those in the PEM file caFile, or the system's if caFile is
// empty. A store without a single one is an error: with it every policy host
// would look broken, and every domain would lose its protection in time.
func LoadRoots(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("the system's certificate authorities: %w", err)
		}
		if roots.Equal(x509.NewCertPool()) {
			return nil, fmt.Errorf("%w: the system has none; install the package ca-certificates, or set ca_file in [fetch]", ErrNoRoots)
		}
		return roots, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("certificate authorities: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s holds no certificate in PEM form", ErrNoRoots, caFile)
	}
	return roots, nil
}
