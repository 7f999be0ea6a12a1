package api

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"manta/head/dispatch"
	"manta/head/limit"
	"manta/head/state"
)

// fakeKeyring keeps keys in the bench's View.
type fakeKeyring struct{ b *bench }

func (f *fakeKeyring) PutKey(_ context.Context, k state.Key) error {
	f.b.cluster.Update(func(v *state.View) {
		if v.Keys = maps.Clone(v.Keys); v.Keys == nil {
			v.Keys = map[state.Digest]state.Key{}
		}
		v.Keys[k.Hash] = k
	})
	return nil
}

func (f *fakeKeyring) DeleteKey(_ context.Context, name string) error {
	f.b.cluster.Update(func(v *state.View) {
		v.Keys = maps.Clone(v.Keys)
		maps.DeleteFunc(v.Keys, func(_ state.Digest, k state.Key) bool { return k.Name == name })
	})
	return nil
}

// keyed is a bench with a keyring; create gives a new key.
func keyed(t *testing.T, change func(*Config)) (b *bench, create func(as, body string) string) {
	ring := &fakeKeyring{}
	b = newBench(t, func(c *Config, _ *dispatch.Config) {
		c.Keyring, c.Rates = ring, limit.New(1)
		if change != nil {
			change(c)
		}
	})
	ring.b = b
	return b, func(as, body string) string {
		t.Helper()
		status, _, text := b.do("POST", "/api/keys", body, "Authorization", "Bearer "+as)
		var made Key
		if err := json.Unmarshal([]byte(text), &made); err != nil || status != 201 || !strings.HasPrefix(made.Key, keyPrefix) {
			t.Fatalf("%s: %d %s", body, status, text)
		}
		return made.Key
	}
}

// Keys that the cluster knows: the first is an administrator's and turns demanding
// on, users' keys make none, a revoked key opens nothing, and none is told twice.
func TestClusterKeys(t *testing.T) {
	b, create := keyed(t, nil)
	if status, _, _ := b.do("GET", "/v1/models", ""); status != 200 {
		t.Fatalf("before there are keys: %d", status)
	}
	if status, _, text := b.do("POST", "/api/keys", `{"name":"first"}`); status != 400 || !strings.Contains(text, `"param":"admin"`) {
		t.Errorf("the first key, a user's: %d %s", status, text)
	}
	root := create("", `{"name":"root","admin":true}`)
	user := create(root, `{"name":"user","requests_per_second":5,"weight":2}`)
	for _, c := range []struct {
		key, method, path, body string
		status                  int
		param                   string
	}{
		{"", "GET", "/v1/models", "", 401, ""}, {"mk-other", "GET", "/v1/models", "", 401, ""},
		{user, "GET", "/v1/models", "", 200, ""}, {user, "GET", "/api/keys", "", 403, ""},
		{user, "POST", "/api/cluster/deployments", `{"model":"m"}`, 403, ""}, {user, "DELETE", "/api/cluster/deployments/m", "", 403, ""},
		{user, "PATCH", "/api/cluster/deployments/m", `{"replicas":0}`, 403, ""}, {user, "POST", "/api/cluster/nodes/n/drain", "", 403, ""},
		{user, "DELETE", "/api/cluster/nodes/n", "", 403, ""}, {user, "GET", "/api/cluster/deployments", "", 200, ""},
		{user, "POST", "/api/keys", `{"name":"x","admin":true}`, 403, ""}, {user, "DELETE", "/api/keys/root", "", 403, ""},
		{root, "POST", "/api/keys", `{"name":"user"}`, 409, "name"}, {root, "POST", "/api/keys", `{"name":"a b"}`, 400, "name"},
		{root, "POST", "/api/keys", `{"name":"y","requests_per_second":-1}`, 400, "requests_per_second"},
		{root, "POST", "/api/keys", `{"name":"y","requests_per_sec":1}`, 400, "requests_per_sec"},
		{root, "POST", "/api/keys", `{"name":"y","tokens_per_minute":-1}`, 400, "tokens_per_minute"},
		{root, "POST", "/api/keys", `{"name":"y","weight":-1}`, 400, "weight"},
		{root, "DELETE", "/api/keys/root", "", 400, "name"}, {root, "DELETE", "/api/keys/nobody", "", 404, "name"},
		{root, "DELETE", "/api/keys/user", "", 200, ""}, {user, "GET", "/v1/models", "", 401, ""},
	} {
		status, _, text := b.do(c.method, c.path, c.body, "Authorization", "Bearer "+c.key)
		if status != c.status || c.param != "" && !strings.Contains(text, `"param":"`+c.param+`"`) {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, status, text, c.status)
		}
	}
	_, _, text := b.do("GET", "/api/keys", "", "Authorization", "Bearer "+root)
	if strings.Contains(text, root) || !strings.Contains(text, `"name":"root"`) {
		t.Errorf("the list: %s", text)
	}
}

// A head that does not know yet what it knew before it stopped lets nobody in.
func TestNoKeysBeforeTheLogIsRead(t *testing.T) {
	restored := false
	b, _ := keyed(t, func(c *Config) { c.Restored = func() bool { return restored } })
	if status, _, _ := b.do("GET", "/v1/models", ""); status != 401 {
		t.Errorf("before: %d", status)
	}
	restored = true
	if status, _, _ := b.do("GET", "/v1/models", ""); status != 200 {
		t.Errorf("after: %d", status)
	}
}

// A key beyond its rate gets 429 with Retry-After, which names the limit; other keys
// are not touched, nor are requests that cost nothing.
func TestKeyLimits(t *testing.T) {
	b, create := keyed(t, nil)
	root := create("", `{"name":"root","admin":true}`)
	for body, named := range map[string]string{
		`{"name":"r","requests_per_second":2}`: "2 requests a second", `{"name":"t","tokens_per_minute":30}`: "30 tokens a minute",
	} {
		key := create(root, body)
		ok, refused := 0, ""
		for range 6 {
			status, header, text := b.do("POST", "/v1/completions", `{"prompt":"12345","max_tokens":20,"ignore_eos":true}`, "Authorization", "Bearer "+key)
			switch {
			case status == 200:
				ok++
			case status == 429 && header.Get("Retry-After") != "":
				refused = text
			default:
				t.Fatalf("%d %s", status, text)
			}
		}
		if ok < 2 || ok > 3 || !strings.Contains(refused, named) {
			t.Errorf("%s: %d let through, then %s", body, ok, refused)
		}
		for _, as := range []string{key, root} {
			if status, _, _ := b.do("GET", "/v1/models", "", "Authorization", "Bearer "+as); status != 200 {
				t.Errorf("models: %d", status)
			}
		}
		if status, _, _ := b.do("POST", "/v1/completions", `{"prompt":"x","max_tokens":1}`, "Authorization", "Bearer "+root); status != 200 {
			t.Errorf("another key: %d", status)
		}
	}
}

// A request is no more urgent than its key may be, and goes with its session.
func TestKeyPriority(t *testing.T) {
	b, create := keyed(t, nil)
	root := create("", `{"name":"root","admin":true}`)
	key := create(root, `{"name":"late","priority":3}`)
	for asked, want := range map[string]int{"-9": 3, "3": 3, "7": 7} {
		before := len(b.cluster.Requests())
		b.do("POST", "/v1/completions", `{"prompt":"x","max_tokens":1,"priority":`+asked+`}`, "Authorization", "Bearer "+key)
		if sent := b.cluster.Requests(); len(sent) != before+1 || sent[before].Priority != want {
			t.Errorf("priority %s: sent %+v, want %d", asked, sent[before:], want)
		}
	}
}
