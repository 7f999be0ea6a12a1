package head

import (
	"testing"
	"time"
)

// Time that this process did not have is nobody's silence: whether it was stopped
// for long or got the processor late again and again.
func TestAwake(t *testing.T) {
	for _, test := range []struct {
		name  string
		looks []time.Duration
		want  time.Duration
	}{
		{"on time", []time.Duration{50, 100, 150, 200, 250}, 250},
		{"a little late", []time.Duration{90, 180, 270}, 270},
		{"stopped", []time.Duration{50, 100, 20100, 20150}, 250},
		{"starved", []time.Duration{500, 1000, 1500, 2000}, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAwake()
			var last time.Duration
			for _, at := range test.looks {
				last = at * time.Millisecond
				a.look(last)
			}
			if got := last - time.Duration(a.lost.Load()); got != test.want*time.Millisecond {
				t.Errorf("awake for %v, want %v", got, test.want*time.Millisecond)
			}
		})
	}
}
