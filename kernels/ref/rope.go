package ref

import (
	"fmt"
	"math"

	"manta/kernels"
)

// ropeTable holds cos and sin of position · inverse[i], times a scale.
type ropeTable struct {
	pairs    int
	cos, sin []float32 // position · pairs + pair
}

func (t *ropeTable) Dim() int { return 2 * t.pairs }

// RopeAngles gives cos and sin, times scale, of position · inverse[i]. The angle
// is a float32 product, as the models were trained with (Su et al. 2021, eq. 15).
func RopeAngles(position int, inverse []float32, scale float32, cos, sin []float32) {
	for i, f := range inverse {
		s, c := math.Sincos(float64(float32(position) * f))
		cos[i], sin[i] = float32(c)*scale, float32(s)*scale
	}
}

// Rope computes the angles of all positions.
func (o *Ops) Rope(inverse []float32, scale float32, positions int) (kernels.RopeTable, error) {
	if positions < 0 {
		return nil, fmt.Errorf("%w: rope of %d positions", ErrShape, positions)
	}
	n := len(inverse)
	t := &ropeTable{pairs: n, cos: make([]float32, n*positions), sin: make([]float32, n*positions)}
	for p := range positions {
		RopeAngles(p, inverse, scale, t.cos[p*n:(p+1)*n], t.sin[p*n:(p+1)*n])
	}
	return t, nil
}

// Rotate turns the pairs of one head by their angles: Su et al. 2021, eq. 34.
// What lies past the last pair stays. Pairs are (i, i+n), or with interleaved
// (2i, 2i+1).
func Rotate(head, cos, sin []float32, interleaved bool) {
	n := len(cos)
	for i := range n {
		a, b := i, i+n
		if interleaved {
			a, b = 2*i, 2*i+1
		}
		x, y := head[a], head[b]
		head[a] = float32(x*cos[i]) - float32(y*sin[i])
		head[b] = float32(y*cos[i]) + float32(x*sin[i])
	}
}
