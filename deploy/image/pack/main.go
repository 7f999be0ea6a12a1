// Manta-pack makes a container image without a Docker daemon: one layer with the
// program, the roots of trust, the users, and, for a binary that is not static, the
// libraries that it needs. The archive is an OCI image layout and a docker-archive
// at once, so `docker load`, `ctr images import`, `skopeo copy oci-archive:` and
// `podman load` all take it. The same input gives the same bytes.
//
//	go run ./deploy/image/pack -name manta:v1 -out dist/manta.tar bin/manta bin/manta-declare
//
// With -rootfs it writes the layer's files into a folder instead, which is what the
// Dockerfile copies: both ways give the same image.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "manta-pack:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("manta-pack", flag.ContinueOnError)
	name := flags.String("name", "manta:dev", "the image's name and tag")
	archive := flags.String("out", "", "archive to write")
	rootfs := flags.String("rootfs", "", "empty or new folder to write the files to, in place of an archive")
	roots := flags.String("ca", "/etc/ssl/certs/ca-certificates.crt", "roots of trust, PEM")
	arch := flags.String("arch", runtime.GOARCH, "architecture of the binaries")
	limit := flags.Float64("max-mb", 0, "fail if the image has more MB (10^6 bytes); 0: any size")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 || (*archive == "") == (*rootfs == "") {
		return errors.New("usage: manta-pack [flags] (-out FILE | -rootfs DIR) BINARY…: the first is the entrypoint")
	}
	tree, err := contents(*roots, flags.Args())
	if err != nil {
		return err
	}
	size := float64(tree.size()) / 1e6
	if *limit > 0 && size > *limit {
		return fmt.Errorf("the image has %.1f MB, more than the %.0f it may have", size, *limit)
	}
	if *rootfs != "" {
		if err := tree.write(*rootfs); err != nil {
			return err
		}
	} else {
		config := config{Architecture: *arch, Entrypoint: "/" + filepath.Base(flags.Arg(0)), GPU: tree.dynamic}
		if err := writeArchive(*archive, *name, config, tree); err != nil {
			return err
		}
	}
	for _, f := range tree.files {
		if len(f.data) > 1<<20 {
			fmt.Fprintf(out, "%8.1f MB  /%s\n", float64(len(f.data))/1e6, f.path)
		}
	}
	fmt.Fprintf(out, "%8.1f MB  %s: all files of the image\n", size, cmp.Or(*archive, *rootfs))
	return nil
}
