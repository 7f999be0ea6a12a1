package cpu

// A worker is the memory of one thread's inner loops.
type worker struct {
	tile   []float32 // outputs of a product: integerRows × 64, twice (gate and up)
	x      []float32 // prepared rows of a small product
	sums   []float32
	codes  []float32 // records of a small product
	ready  uint64    // the product that x belongs to
	query  queryScratch
	draws  drawScratch
	packer packer
	_      [64]byte
}

func (w *worker) prepare(m *memory) error {
	var err error
	if w.tile, err = m.floats(2 * integerRows * groupRows); err != nil {
		return err
	}
	return w.query.prepare(m, 256)
}

// scratch is memory that operations share; it grows to the largest use and stays.
type scratch struct {
	x, sums, wide, codes []float32
}

// grow gives at least n numbers. What it replaces stays mapped until Close, so it
// at least doubles.
func (o *Ops) grow(p *[]float32, n int) []float32 {
	if n <= len(*p) {
		return (*p)[:n]
	}
	fresh, err := o.memory.floats(max(n, 2*len(*p)))
	if err != nil {
		panic(err) // the step cannot go on; the device's sizes were planned
	}
	*p = fresh
	return fresh[:n]
}
