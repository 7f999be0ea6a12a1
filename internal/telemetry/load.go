package telemetry

import (
	"sync"
	"time"
)

// window is the number of seconds over which rates are taken, as the recording
// rules do.
const window = 60

// Load is what a head has to do for one model right now: what autoscalers go by.
type Load struct {
	Waiting   int     `cbor:"1,keyasint"` // requests that wait for a replica
	Running   int     `cbor:"2,keyasint"` // requests that one works on
	PerSecond float64 `cbor:"3,keyasint"` // requests that ended, over the last minute
}

// Add gives the load of both.
func (l Load) Add(other Load) Load {
	return Load{l.Waiting + other.Waiting, l.Running + other.Running, l.PerSecond + other.PerSecond}
}

// loads counts by model beside the registry, which is costly to ask.
type loads struct {
	mu     sync.Mutex
	models map[string]*load // guarded by mu
}

type load struct {
	waiting, running int
	seconds          [window]struct {
		at    int64 // Unix time; an older one counts nothing
		ended int
	}
}

func (l *loads) change(model string, waiting, running, ended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, ok := l.models[model]
	if !ok {
		m = &load{}
		l.models[model] = m
	}
	m.waiting += waiting
	m.running += running
	if ended > 0 {
		now := time.Now().Unix()
		second := &m.seconds[now%window]
		if second.at != now {
			second.at, second.ended = now, 0
		}
		second.ended += ended
	}
}

// Loads gives the load of each model on this head.
func (m *Metrics) Loads() map[string]Load {
	m.loads.mu.Lock()
	defer m.loads.mu.Unlock()
	now := time.Now().Unix()
	all := map[string]Load{}
	for model, l := range m.loads.models {
		ended := 0
		for _, second := range l.seconds {
			if now-second.at < window {
				ended += second.ended
			}
		}
		all[model] = Load{l.waiting, l.running, float64(ended) / window}
	}
	return all
}
