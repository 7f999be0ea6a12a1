// Package kubernetes installs the chart on a real Kubernetes (package lab) and
// breaks it while streams run: no stream may fail, and each must give the tokens of
// the undisturbed run. Tests carry the build tag kubernetes; they share one release and
// run in the order of their files.
//
//	make e2e-k8s            # builds Kubernetes the first time: 12 minutes of two cores
//
// Where the machine can't run it, it says why and passes.
package kubernetes
