// Package model runs decoders. A model is described once, as data (a Spec), and
// one decoder turns any Spec into calls on kernels.Ops, over a range of layers and
// a slice of heads: the same code serves one device or forty, CPU or GPU.
package model
