//go:build e2e && linux

package scale

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"manta/head/api"
)

const (
	chatUsers = 64
	chatTurns = 8
)

// chats runs chats of several turns over four replicas, each with one head and each turn
// with another: the hit rate is within 5% of one replica's, and no replica does more than
// 1.3 times the mean.
func (b *bench) chats() {
	b.add(1, "sim:4", map[string]string{"pool": "four"})
	b.add(1, "sim:4", map[string]string{"pool": "sessions"})
	b.add(1, "sim:1", map[string]string{"pool": "one"})
	b.deploy("four", 4, 32)
	b.deploy("sessions", 4, 32)
	b.deploy("one", 1, 128)
	one, _ := b.chat("one", false)
	for _, name := range []string{"four", "sessions"} {
		rate, busiest := b.chat(name, name == "sessions")
		b.bound(rate >= 0.95*one && busiest <= 1.3, "%s: hit rate %.3f, %.3f on one replica, the busiest %.2f of the mean", name, rate, one, busiest)
	}
}

// chat runs the chats with one deployment.
func (b *bench) chat(name string, sessions bool) (rate, busiest float64) {
	var users sync.WaitGroup
	asked, mu := uint64(0), sync.Mutex{}
	system := strings.Repeat("You are a helpful assistant. ", 3) // shared by all
	for user := range chatUsers {
		users.Go(func() {
			draw := rand.New(rand.NewPCG(uint64(user), 4))
			var prompt strings.Builder
			prompt.WriteString(system)
			for turn := range chatTurns {
				pause(time.Duration(draw.IntN(400)) * time.Millisecond)
				for range 40 + draw.IntN(80) {
					prompt.WriteByte(byte('a' + draw.IntN(26)))
				}
				q := question{model: name, prompt: prompt.String(), tokens: 10 + draw.IntN(20)}
				head := user % *headCount
				if sessions {
					head, q.session = (user+turn)%*headCount, fmt.Sprint("user ", user)
				}
				if err := q.ask(b.t.Context(), b.urls[head], func(int) {}); err != nil {
					b.t.Errorf("%s: user %d, turn %d: %v", name, user, turn, err)
					return
				}
				mu.Lock()
				asked += uint64(len(q.prompt))
				mu.Unlock()
			}
		})
	}
	users.Wait()
	var of api.Deployment
	b.until("what the drivers did", func(s *api.ClusterState) bool {
		prompts := uint64(0)
		for _, d := range s.Deployments {
			if d.Name == name {
				of = d
			}
		}
		for _, r := range of.Replicas {
			prompts += r.Prompt
		}
		return prompts >= asked // a token a byte
	})
	prompts, hits, work, most := 0.0, 0.0, 0.0, 0.0
	for _, r := range of.Replicas {
		own := float64(r.Prompt-r.Cached) + float64(r.Output)
		prompts, hits, work, most = prompts+float64(r.Prompt), hits+float64(r.Cached), work+own, max(most, own)
	}
	return hits / prompts, most / (work / float64(len(of.Replicas)))
}
