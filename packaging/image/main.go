// Command image writes the container image as an OCI layout in a tar file: the binary, the
// public certificate authorities, a user and a configuration, and nothing else. It needs neither
// a container engine nor a base image. The same files give the same bytes.
//
//	image -binaries DIR -config FILE -roots FILE -passwd FILE -group FILE -version V -date UNIX -out FILE
//
// DIR has ARCH/sts-tlsmap for each architecture.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const user = 65532 // as in the file passwd

// A file of the image. A folder has no source.
type file struct {
	name   string
	source string
	mode   int64
	owner  int
}

func main() {
	binaries := flag.String("binaries", "", "folder with ARCH/sts-tlsmap")
	config := flag.String("config", "", "the configuration file")
	roots := flag.String("roots", "", "the certificate authorities in PEM")
	passwd := flag.String("passwd", "", "the file /etc/passwd")
	group := flag.String("group", "", "the file /etc/group")
	version := flag.String("version", "", "the version")
	date := flag.Int64("date", 0, "the time of all files, in seconds since 1970")
	out := flag.String("out", "", "the file to write")
	flag.Parse()
	created := time.Unix(*date, 0).UTC()

	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		layer := must(layerOf(created, []file{
			{"etc/", "", 0o755, 0},
			{"etc/group", *group, 0o644, 0},
			{"etc/passwd", *passwd, 0o644, 0},
			{"etc/ssl/", "", 0o755, 0},
			{"etc/ssl/certs/", "", 0o755, 0},
			{"etc/ssl/certs/ca-certificates.crt", *roots, 0o644, 0},
			{"etc/sts-tlsmap/", "", 0o755, 0},
			{"etc/sts-tlsmap/sts-tlsmap.toml", *config, 0o644, 0},
			{"run/", "", 0o755, 0},
			{"run/sts-tlsmap/", "", 0o755, user},
			{"usr/", "", 0o755, 0},
			{"usr/sbin/", "", 0o755, 0},
			{"usr/sbin/sts-tlsmap", filepath.Join(*binaries, arch, "sts-tlsmap"), 0o755, 0},
			{"var/", "", 0o755, 0},
			{"var/lib/", "", 0o755, 0},
			{"var/lib/sts-tlsmap/", "", 0o700, user},
		}))
		img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		img = must(mutate.ConfigFile(img, &v1.ConfigFile{
			Architecture: arch, OS: "linux", Created: v1.Time{Time: created},
			Config: v1.Config{
				User:         "65532:65532",
				Entrypoint:   []string{"/usr/sbin/sts-tlsmap"},
				Env:          []string{"PATH=/usr/sbin"},
				ExposedPorts: map[string]struct{}{"8461/tcp": {}, "8642/tcp": {}},
				Volumes:      map[string]struct{}{"/var/lib/sts-tlsmap": {}},
				Labels:       map[string]string{"org.opencontainers.image.title": "sts-tlsmap", "org.opencontainers.image.version": *version, "org.opencontainers.image.licenses": "MIT"},
				// Docker and podman (in its docker format) read this; compose files name it too.
				Healthcheck: &v1.HealthConfig{
					Test:     []string{"CMD", "/usr/sbin/sts-tlsmap", "-query", "localhost", "-healthy"},
					Interval: 30 * time.Second, Timeout: 10 * time.Second, StartPeriod: 10 * time.Second,
				},
			},
			RootFS: v1.RootFS{Type: "layers"},
		}))
		img = must(mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "packaging/image"}}))
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}

	dir := must(os.MkdirTemp("", "image"))
	defer os.RemoveAll(dir)
	// The outer index names the image of all architectures, by which engines tag it.
	outer := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": *version}},
	})
	_ = must(layout.Write(dir, outer))
	var files []file
	check(fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || path == ".":
			return err
		case d.IsDir():
			files = append(files, file{path + "/", "", 0o755, 0})
		default:
			files = append(files, file{path, filepath.Join(dir, path), 0o644, 0})
		}
		return nil
	}))
	check(os.WriteFile(*out, must(tarOf(created, files)), 0o644))
}

// layerOf makes a layer of files.
func layerOf(at time.Time, files []file) (v1.Layer, error) {
	b, err := tarOf(at, files)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithMediaType(types.OCILayer))
}

// tarOf makes a tar file. Nothing in it depends on this machine but the files' contents.
func tarOf(at time.Time, files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: f.name, Mode: f.mode, Uid: f.owner, Gid: f.owner, ModTime: at, Format: tar.FormatUSTAR}
		var content []byte
		if f.source != "" {
			var err error
			if content, err = os.ReadFile(f.source); err != nil {
				return nil, err
			}
			h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal("image: ", err)
	}
}
