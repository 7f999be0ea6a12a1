// Package weights opens model files and brings them to this machine.
//
// Open reads a folder in Hugging Face form (config.json with model.safetensors
// or its index) or a .gguf file. The bytes are mapped read-only and never lie on
// the Go heap; every offset, count and size is checked before it is used, so a
// broken file is an error that names the field, never a panic. A Library pulls
// what a Reference names into the download folder; package hub speaks to the
// Hugging Face hub for it.
//
// A Model belongs to whoever opened it. Its matrices point into the mapping:
// they die with Close. A file that another process cuts short while it is mapped
// ends this one (SIGBUS), so what a Library holds is replaced by renaming, never
// written in place.
//
// The package never converts a number, knows no architecture, and refuses by
// name what the project does not do (FP8, GPTQ, AWQ, adapters, other block types).
package weights
