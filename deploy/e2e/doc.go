// Package e2e starts the real program as processes of this machine and looks at
// it from outside, as users do: HTTP, signals, exit codes, a terminal. Its tests
// carry the build tag e2e (make e2e) because they need the built binary, a model
// from the machine's package index and minutes of time. It imports nothing of
// the program. The clients of others are in sdk.
//
//	go test -tags e2e ./deploy/e2e -overload 60s    # a minute of overload
package e2e
