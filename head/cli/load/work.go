package load

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"
)

// Work is one request.
type Work struct {
	Input, Output int // tokens
	// The first PrefixTokens of the input are those of every request of that Prefix.
	Prefix, PrefixTokens int
	// Conversation > 0 makes it a turn of a chat: the request brings what was said
	// before, and Input counts what is new, in words.
	Conversation int
}

// ReadWork reads a file of [[in, out], …].
func ReadWork(name string) ([]Work, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	var pairs [][]int
	if err := json.Unmarshal(data, &pairs); err != nil {
		return nil, fmt.Errorf("workload %s: it must be a JSON list of [input tokens, output tokens]: %w", name, err)
	}
	var all []Work
	for i, pair := range pairs {
		if len(pair) != 2 || pair[0] < 1 || pair[1] < 1 {
			return nil, fmt.Errorf("workload %s: entry %d is not [input tokens, output tokens]", name, i)
		}
		all = append(all, Work{Input: pair[0], Output: pair[1]})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("workload %s: it is empty", name)
	}
	return all, nil
}

// RandomWork draws lengths evenly from mean·(1 ± spread).
func RandomWork(requests, input, output int, spread float64, seed uint64) []Work {
	draw := rand.New(rand.NewPCG(seed, 1))
	around := func(mean int) int {
		low := max(1, int(float64(mean)*(1-spread)))
		high := max(low, int(float64(mean)*(1+spread)))
		return low + draw.IntN(high-low+1)
	}
	all := make([]Work, requests)
	for i := range all {
		all[i] = Work{Input: around(input), Output: around(output)}
	}
	return all
}

// SharePrefixes gives the requests prefixes in turn, before their own input.
func SharePrefixes(all []Work, prefixes, tokens int) {
	for i := range all {
		all[i].Prefix, all[i].PrefixTokens = i%prefixes, tokens
		all[i].Input += tokens
	}
}

// Converse makes conversations of so many turns each of the requests.
func Converse(all []Work, turns int) {
	for i := range all {
		all[i].Conversation = 1 + i/turns
	}
}

// conversations groups what belongs together, in order.
func conversations(all []Work) [][]int {
	var talks [][]int
	for i, w := range all {
		if last := len(talks) - 1; i > 0 && w.Conversation > 0 && all[i-1].Conversation == w.Conversation {
			talks[last] = append(talks[last], i)
			continue
		}
		talks = append(talks, []int{i})
	}
	return talks
}

// arrivals gives when each of n begins: gaps of a gamma distribution with the mean
// 1/rate; with a rate of 0 at once.
func arrivals(n int, rate, shape float64, seed uint64) []time.Duration {
	begins := make([]time.Duration, n)
	if rate == 0 {
		return begins
	}
	if shape == 0 {
		shape = 1
	}
	draw := rand.New(rand.NewPCG(seed, 1<<41))
	at := 0.0
	for i := range begins {
		begins[i] = time.Duration(at * float64(time.Second))
		at += gamma(draw, shape) / (shape * rate)
	}
	return begins
}

// gamma draws by Marsaglia and Tsang 2000, §4, §6 for shapes below one.
func gamma(draw *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(draw, shape+1) * math.Pow(draw.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := draw.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if u := draw.Float64(); math.Log(u) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}
