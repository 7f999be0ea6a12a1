//go:build cuda

package cuda

import (
	"fmt"
	"unsafe"

	"manta/kernels"
)

const (
	jointBlocks, jointThreads, jointShared = 4, 288, 225 << 10 // src/joint.cuh
	jointTwice                             = 110 << 10         // with as much, two blocks stand on a multiprocessor
	jointLine                              = 132 * 4           // bytes of a row of sums
	squareParts, partColumns               = 16, 128           // of a row's sum of squares; of each of them
)

var jointTiles = []int{16, 32, 64, 96, 128} // rows

// A feed is where a step has its newest joint product, which may still be told to make
// what the next product reads.
type feed struct {
	launches, at int // of the step, up to it; where its arguments stand
	joint        jointArguments
}

// joint launches the product of rows by a weight that is small and has as many segments
// as a cluster has blocks, if all of its clusters have room on the device at once.
func (o *Ops) joint(a linearArguments, rows int) bool {
	if a.segments != jointBlocks || a.width%128 != 0 || a.gated+a.activation+a.outNarrow != 0 || a.bias != 0 || a.softcap != 0 || a.outStride%4 != 0 {
		return false
	}
	weightTiles := int(a.width) / 128
	for _, tile := range jointTiles {
		stage := (128 + tile) * 128
		shared := max(min(int(a.segment)/2, jointShared/stage)*stage, tile*jointLine)
		standing := o.info.Multiprocessor * 10 / 11 / jointBlocks // clusters: of 132 multiprocessors 30 × 4
		if shared <= jointTwice {
			standing *= 2
		}
		clusters := weightTiles * ceil(rows, tile)
		if clusters > standing {
			continue
		}
		w := jointArguments{linearArguments: a, weightTiles: int32(weightTiles), x: o.tensorMap(rowsTiling(a, rows, tile, tile))}
		o.launch(fmt.Sprintf("joint%s_%d", o.suffix, tile), clusters*jointBlocks, 1, 1, jointThreads, shared, bytesOf(&w))
		o.step.feed = feed{launches: len(o.step.list), at: len(o.step.arguments) - int(unsafe.Sizeof(w)), joint: w}
		return true
	}
	return false
}

// fed has the joint product that made x make of it what prepare would, if nothing stands
// between it and the product that a is of.
func (o *Ops) fed(a *linearArguments, x kernels.Tensor, n *kernels.Norm) bool {
	s := o.step
	f := &s.feed
	if !o.wideKernels || f.launches == 0 || f.launches != len(s.list) || f.joint.out != bufferOf(x).at || int(f.joint.rows) != x.Rows ||
		int(f.joint.width) != x.Cols || int(f.joint.outStride) != x.Cols || x.Cols > squareParts*partColumns || f.joint.scale != 0 {
		return false
	}
	next := o.need("prepared", x.Rows*x.Cols*4).at
	if f.joint.linearArguments.x == next { // of which other blocks still read
		return false
	}
	f.joint.next, f.joint.gain, f.joint.squares = next, vectorAt(n.Weight), o.need("squares", x.Rows*squareParts*4).at
	copy(s.arguments[f.at:], bytesOf(&f.joint))
	a.x, a.xStride, a.xNarrow = next, int32(x.Cols), 1
	a.scale, a.parts, a.eps = f.joint.squares, int32(x.Cols/partColumns), n.Eps
	return true
}
