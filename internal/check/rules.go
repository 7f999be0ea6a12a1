package main

import (
	"slices"
	"strings"
)

// layers may import what stands to their right, never to their left; head and
// node stand beside each other.
var layers = []string{"runtime", "parallel", "kernels"}

// headMay is all that head imports of the others.
var headMay = map[string][]string{
	"node":     {"wire", "member"},
	"runtime":  {"token", "chat", "sample", "weights", "kv", "plan"},
	"parallel": {"shard", "link"},
	"kernels":  {""}, // the types alone
}

// only lists the packages that one package alone imports.
var only = map[string]string{
	"gorgonia.org/cu":                 "kernels/cuda",
	"github.com/NVIDIA/go-nvml":       "node/gpu",
	"github.com/hashicorp/raft":       "head/state",
	"github.com/nats-io":              "parallel/link",
	"github.com/hashicorp/memberlist": "node/member",
}

// pure packages use no clock, no I/O, no goroutine, no global.
var pure = []string{"head/route", "head/place", "runtime/sched", "runtime/kv", "runtime/plan", "parallel/shard", "runtime/sample"}

// impure are the imports that a pure package may not have.
var impure = []string{"os", "net", "net/http", "io/fs", "math/rand", "math/rand/v2", "sync", "sync/atomic", "log/slog", "os/exec", "context"}

// forbidden gives the reason why from may not import to, or nothing.
func forbidden(from, to string, test bool) string {
	for owned, owner := range only {
		if (to == owned || strings.HasPrefix(to, owned+"/")) && from != owner && !strings.HasPrefix(from, owner+"/") && !test {
			return "only " + owner + " does"
		}
	}
	if slices.Contains(pure, from) && slices.Contains(impure, to) && !test {
		return from + " is pure: no clock, I/O, goroutine or global"
	}
	target, ours := strings.CutPrefix(to, module+"/")
	if !ours {
		return ""
	}
	fromTop, _, _ := strings.Cut(from, "/")
	toTop, rest, _ := strings.Cut(target, "/")
	switch fromTop {
	case "internal":
		if toTop != "internal" {
			return "internal imports nothing of the program"
		}
	case "head":
		allowed, limited := headMay[toTop]
		sub, _, _ := strings.Cut(rest, "/")
		if limited && !slices.Contains(allowed, sub) && !test {
			return "head may import of " + toTop + " only " + strings.Join(allowed, " ")
		}
	case "node":
		if toTop == "head" {
			return "node imports nothing of head"
		}
	case "runtime", "parallel", "kernels":
		if toTop == "head" || toTop == "node" ||
			slices.Contains(layers, toTop) && slices.Index(layers, toTop) < slices.Index(layers, fromTop) {
			return fromTop + " never imports " + toTop
		}
	}
	return ""
}
