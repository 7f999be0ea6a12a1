// Package modeltest reads reference outputs of small models, for the tests of
// whoever runs models. It never runs in the program.
package modeltest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"manta/kernels"
)

// Bounds that a right implementation keeps, in float32.
const (
	LogitTolerance = 2e-4 // of a logit, absolute
	Margin         = 1e-3 // greedy tokens are equal where the prompt's margin exceeds this
)

// A Golden is golden.json of one model.
type Golden struct {
	Source  string // what made it
	Prompts []Prompt
}

// A Prompt is one reference: the logits after it, the greedy tokens that follow,
// and the smallest gap between the best two logits on that path.
type Prompt struct {
	IDs        []int32
	LogitsLast []float32 `json:"logits_last"`
	Greedy     []int32
	Margin     float64
}

// Folders lists the models with references under GOLDEN_DIR, or under the folder
// given where that is not set.
func Folders(otherwise string) ([]string, error) {
	root := cmp.Or(os.Getenv("GOLDEN_DIR"), otherwise)
	files, err := filepath.Glob(filepath.Join(root, "models", "*", "golden.json"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("modeltest: no references under %s/models", root)
	}
	for i, f := range files {
		files[i] = filepath.Dir(f)
	}
	return files, err
}

// Read reads the references in a model's folder.
func Read(folder string) (Golden, error) {
	var g Golden
	data, err := os.ReadFile(filepath.Join(folder, "golden.json"))
	if err == nil {
		err = json.Unmarshal(data, &g)
	}
	if err == nil && len(g.Prompts) == 0 {
		err = fmt.Errorf("modeltest: %s: no prompts", folder)
	}
	return g, err
}

// Frequencies gives the type that a reference's rotation frequencies were rounded
// to, for model.Spec.RoundFrequencies. References of transformers 5.17 were made
// from models converted to the stored type in memory, which rounds that buffer
// too; those of 5.23 from the files, which do not hold it.
func (g Golden) Frequencies(stored kernels.DType) kernels.DType {
	if strings.HasPrefix(g.Source, "transformers 5.17.") {
		return stored
	}
	return kernels.F32
}
