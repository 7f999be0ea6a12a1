// Package cluster runs three heads and four nodes as real processes on loopback
// and breaks them one after the other while streams run: every stream must end
// with the tokens of the undisturbed run. It prints how long the longest pause of
// each fault was. Tests carry the build tag e2e.
//
//	go test -tags e2e ./deploy/e2e/cluster -rounds 20 -v     # the full kill matrix
package cluster
