// Package model runs decoders. A model is described once, as data (a Spec), and
// one decoder turns any Spec into calls on kernels.Ops, over a range of layers and
// a slice of heads: the same code serves one device or forty, CPU or GPU.
//
// Describe reads what a file says and checks every tensor; Load brings one rank's
// slice to a device; Forward computes a batch. A Model belongs to the goroutine
// that owns its Ops. The package samples nothing, holds no sequence, counts no
// block, and never changes a weight: matrices go to the device as their file
// stores them.
//
// # What is refused
//
// A configuration is read through a type that notes each key. A key that nobody
// reads and that is not known to be without effect is an error that names it
// (ErrUnsupported), and so is a tensor that nothing would use: a model that has
// one computes something else. So a model either gives its own answers or none.
//
// # How to add an architecture
//
// First, write one file, NAME.go, with a function from the configuration to a Spec:
//
//	// orca: Doe et al. 2027, §2: Llama with a norm on queries and keys.
//	func orca(c *config) (*Spec, error) {
//		s := base(c)
//		s.Activation = c.activation("hidden_act", "silu")
//		s.QKNorm = PerHead
//		s.Names.QNorm = "model.layers.{l}.self_attn.q_norm"
//		s.Names.KNorm = "model.layers.{l}.self_attn.k_norm"
//		s.setRope(c.rope(s.HeadDim, 10000, 1))
//		return s, c.finish()
//	}
//
// base reads the keys that nearly all share, with Llama's tensor names. What
// differs is a field of Spec: where norms stand (a name of a norm that is empty
// has none; AttentionPostNorm and FFNPostNorm come after), biases, fused or
// transposed weights, windows and rotations layer by layer, soft caps, experts,
// the scale of embeddings and attention. Read every key that matters; finish
// refuses the others. A key whose value must be the usual one is c.must(key,
// value); a key without effect goes into effectless.
//
// Second, name it in huggingFace (describe.go), by its model_type.
//
// Third, if llama.cpp has it, write the same from GGUF's metadata in
// gguf_families.go: tensor names are ggufNames, and its converter may permute
// queries and keys (Interleaved), transpose weights, or add one to norms.
//
// Last, put a published config.json into published_test.go, sizes that nobody
// publishes into randomConfig (random_test.go), and references of a small random
// model (golden.json, made with transformers) into a folder that GOLDEN_DIR names;
// add its GGUF name to families in gguf_test.go and a repository to
// deploy/e2e/hub. Then GOLDEN_DIR=… go test ./runtime/model holds it to them on
// one rank and on many, in chunks, in mixed batches, bit for bit, and as GGUF.
//
// Where a model needs what no field says, add the field, and its meaning to
// layer in forward.go; where it needs a computation that kernels.Ops lacks, that
// begins in kernels/ref.
//
// # Tensor ranks
//
// A rank has some query heads, the KV heads they need, some columns of each
// feed-forward layer or expert, and some rows of the output matrix. The sums
// after attention and after the feed-forward layer go through AllReduce (rank 0
// brings the bias), the logits through Gather to rank 0. The embedding is whole on every
// rank of the first stage. A model that normalises across heads (OLMo 2) computes
// its attention whole on every rank and divides the feed-forward layers alone.
package model
