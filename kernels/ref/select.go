package ref

import (
	"math"
	"slices"
)

// bucketCount divides the logits below the highest into equal ranges.
const bucketCount = 1024

// A bucket is the candidates whose logits fall in one range.
type bucket struct {
	count int
	mass  float64
}

// keepTop keeps, of the candidates in falling order of logit (then rising order
// of token), the shortest prefix that counts k or whose weights reach mass
// (infinite before they are weighed). kept stays in token order. It never sorts the vocabulary:
// a histogram finds the bucket in which the prefix ends, and that alone is sorted.
func (s *Sampler) keepTop(k int, mass float64) {
	if len(s.kept) == 0 {
		return
	}
	highest, lowest := highestOf(s.kept), float32(math.Inf(1))
	for _, c := range s.kept {
		lowest = min(lowest, c.logit)
	}
	// A logit 100 below the highest weighs nothing; the last bucket takes the rest.
	width := min(highest-lowest, 100) / (bucketCount - 1)
	if !(width > 0) {
		width = 1
	}
	index := func(logit float32) int {
		return int(min((highest-logit)/width, bucketCount-1))
	}
	if s.buckets == nil {
		s.buckets = make([]bucket, bucketCount)
	}
	clear(s.buckets)
	for _, c := range s.kept {
		b := &s.buckets[index(c.logit)]
		b.count++
		b.mass += float64(c.weight)
	}
	edge := 0
	for ; edge < bucketCount-1; edge++ {
		b := s.buckets[edge]
		if b.count >= k || b.mass >= mass {
			break
		}
		k -= b.count
		mass -= b.mass
	}
	s.edge = s.edge[:0]
	for _, c := range s.kept {
		if index(c.logit) == edge {
			s.edge = append(s.edge, c)
		}
	}
	slices.SortFunc(s.edge, func(a, b candidate) int {
		if a.logit != b.logit {
			if a.logit > b.logit {
				return -1
			}
			return 1
		}
		return int(a.token - b.token)
	})
	cut := s.edge[:0]
	for _, c := range s.edge {
		if len(cut) == k || len(cut) > 0 && mass <= 0 {
			break
		}
		cut = append(cut, c)
		mass -= float64(c.weight)
	}
	if len(cut) == 0 { // the prefix ended with the bucket before
		s.kept = slices.DeleteFunc(s.kept, func(c candidate) bool { return index(c.logit) >= edge })
		return
	}
	last := cut[len(cut)-1]
	s.kept = slices.DeleteFunc(s.kept, func(c candidate) bool {
		return c.logit < last.logit || c.logit == last.logit && c.token > last.token
	})
}

// atMostTop gives a bound that the k highest values reach: the k-th highest of the
// maxima of more than k runs.
func (s *Sampler) atMostTop(x []float32, k int) float32 {
	run := len(x) / (4*k + 1)
	if run < 2 {
		return float32(math.Inf(-1))
	}
	s.maxima = s.maxima[:0]
	for lo := 0; lo < len(x); lo += run {
		best := float32(math.Inf(-1))
		for _, v := range x[lo:min(lo+run, len(x))] {
			if v > best {
				best = v
			}
		}
		s.maxima = append(s.maxima, best)
	}
	slices.Sort(s.maxima)
	return s.maxima[len(s.maxima)-k]
}

// dropTail drops candidates so light that all of them together weigh less than
// tail: what is left still holds the prefix that top_p keeps.
func (s *Sampler) dropTail(tail float64) {
	lightest := float32(tail / float64(len(s.kept)+1))
	s.kept = slices.DeleteFunc(s.kept, func(c candidate) bool { return c.weight < lightest })
}

func highestOf(list []candidate) float32 {
	highest := float32(math.Inf(-1))
	for _, c := range list {
		highest = max(highest, c.logit)
	}
	return highest
}

// exp computes eˣ for x ≤ 0 in float32 to about one unit in the last place:
// 2ⁿ·eʳ with |r| ≤ ln(2)/2 and Cephes' polynomial (expf.c). Below -87.3 it is 0.
func exp(x float32) float32 {
	if !(x >= -87.3) {
		return 0
	}
	n := float32(int32(x*math.Log2E - 0.5)) // x ≤ 0: towards zero is to the nearest
	x -= n * 0.693359375
	x -= n * -2.12194440e-4
	p := float32(1.9875691500e-4)
	p = p*x + 1.3981999507e-3
	p = p*x + 8.3334519073e-3
	p = p*x + 4.1665795894e-2
	p = p*x + 1.6666665459e-1
	p = p*x + 5.0000001201e-1
	p = p*x*x + x + 1
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}
