package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// config is what differs between the images.
type config struct {
	Architecture string
	Entrypoint   string
	GPU          bool
}

// descriptor names a blob (OCI image spec, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func describe(media string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	return descriptor{MediaType: media, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(data)}
}

func (d descriptor) path() string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }

// imageConfig is OCI image spec, config.md.
func imageConfig(c config, layer descriptor) ([]byte, error) {
	environment := []string{"PATH=/", "HOME=/tmp", "MANTA_DATA_DIR=/data", "MANTA_DOWNLOAD_DIR=/models", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"}
	if c.GPU { // what the driver's container runtime mounts
		environment = append(environment, "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
	}
	type list = []string
	return json.Marshal(map[string]any{
		"architecture": c.Architecture,
		"os":           "linux",
		"config": map[string]any{
			"User": strconv.Itoa(user) + ":" + strconv.Itoa(user), "Entrypoint": list{c.Entrypoint},
			"Env": environment, "WorkingDir": "/data",
			"ExposedPorts": map[string]any{"8000/tcp": struct{}{}, "9090/tcp": struct{}{}},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": list{layer.Digest}},
		"history": []map[string]string{{"created_by": "manta-pack"}},
	})
}

// writeArchive writes blobs, OCI's index and Docker's manifest.
func writeArchive(name, tag string, c config, t *tree) error {
	layer, err := t.layer()
	if err != nil {
		return err
	}
	layerBlob := describe(mediaLayer, layer)
	config, err := imageConfig(c, layerBlob)
	if err != nil {
		return err
	}
	configBlob := describe(mediaConfig, config)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": configBlob, "layers": []descriptor{layerBlob},
	})
	if err != nil {
		return err
	}
	manifestBlob := describe(mediaManifest, manifest)
	named := manifestBlob
	named.Annotations = map[string]string{"io.containerd.image.name": full(tag), "org.opencontainers.image.ref.name": reference(tag)}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{named}})
	if err != nil {
		return err
	}
	docker, err := json.Marshal([]map[string]any{{
		"Config": configBlob.path(), "RepoTags": []string{tag}, "Layers": []string{layerBlob.path()},
	}})
	if err != nil {
		return err
	}
	return writeTar(name, []file{
		{path: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{path: "index.json", data: index},
		{path: "manifest.json", data: docker},
		{path: manifestBlob.path(), data: manifest},
		{path: configBlob.path(), data: config},
		{path: layerBlob.path(), data: layer},
	})
}

// full is the name as containerd keeps it: with the host that Docker leaves out.
func full(tag string) string {
	first, _, several := strings.Cut(tag, "/")
	switch {
	case !several:
		return "docker.io/library/" + tag
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return tag
	default:
		return "docker.io/" + tag
	}
}

// reference is the tag of NAME:TAG.
func reference(tag string) string {
	_, last, ok := strings.Cut(tag[strings.LastIndex(tag, "/")+1:], ":")
	if !ok {
		return "latest"
	}
	return last
}

func writeTar(name string, files []file) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	for _, f := range files {
		header := &tar.Header{Name: f.path, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	return w.Close()
}
