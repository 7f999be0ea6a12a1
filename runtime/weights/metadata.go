package weights

import "slices"

// Metadata is the key-value part of a GGUF file. A getter's false means: no such
// key, or one whose value does not fit the type asked for.
type Metadata struct {
	values map[string]any // uint64 int64 float64 bool string, or a slice of one
}

// Keys lists all keys in alphabetical order.
func (m Metadata) Keys() []string {
	keys := make([]string, 0, len(m.values))
	for k := range m.values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (m Metadata) String(key string) (string, bool) {
	s, ok := m.values[key].(string)
	return s, ok
}

func (m Metadata) Bool(key string) (bool, bool) {
	b, ok := m.values[key].(bool)
	return b, ok
}

// Uint gives any stored integer that is not negative.
func (m Metadata) Uint(key string) (uint64, bool) {
	switch v := m.values[key].(type) {
	case uint64:
		return v, true
	case int64:
		return uint64(v), v >= 0
	}
	return 0, false
}

// Float gives a stored number, integer or not.
func (m Metadata) Float(key string) (float64, bool) {
	switch v := m.values[key].(type) {
	case float64:
		return v, true
	case int64:
		return float64(v), true
	case uint64:
		return float64(v), true
	}
	return 0, false
}

// The slices below are the model's own: the caller may not change them.

func (m Metadata) Strings(key string) ([]string, bool) {
	s, ok := m.values[key].([]string)
	return s, ok
}

func (m Metadata) Bools(key string) ([]bool, bool) {
	s, ok := m.values[key].([]bool)
	return s, ok
}

func (m Metadata) Ints(key string) ([]int64, bool) {
	s, ok := m.values[key].([]int64)
	return s, ok
}

func (m Metadata) Floats(key string) ([]float64, bool) {
	s, ok := m.values[key].([]float64)
	return s, ok
}
