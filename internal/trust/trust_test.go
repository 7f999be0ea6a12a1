package trust

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	secretA = "a first secret of the cluster"
	secretB = "another secret of the cluster"
)

func TestParseSecrets(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int // 0: refused
	}{
		"one":               {secretA + "\n", 1},
		"two and a comment": {"# old below\n" + secretB + "\n\n  " + secretA + "  \n", 2},
		"empty":             {"", 0},
		"comments only":     {"# nothing\n", 0},
		"too short":         {"short\n", 0},
		"too long":          {strings.Repeat("x", maxSecretBytes+1), 0},
		"too many":          {strings.Repeat(secretA+"\n", maxSecrets+1), 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSecrets([]byte(c.text))
			if len(got) != c.want {
				t.Fatalf("%d secrets, want %d (%v)", len(got), c.want, err)
			}
			if (err != nil) != (c.want == 0) || err != nil && !errors.Is(err, ErrSecret) {
				t.Fatalf("error %v", err)
			}
		})
	}
}

// A secret is made once, is readable by its owner alone, and all who start at
// the same moment agree on it.
func TestLoadOrCreateSecretsIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	var wg sync.WaitGroup
	got := make([]Secrets, 8)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = LoadOrCreateSecrets(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range got[1:] {
		if len(s) != 1 || !bytes.Equal(s[0], got[0][0]) {
			t.Fatalf("secrets differ: %q and %q", s, got[0])
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, want 0600", info.Mode().Perm())
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*"))
	if len(left) != 0 {
		t.Fatalf("temporary files left: %v", left)
	}
}

func secrets(t *testing.T, lines ...string) Secrets {
	t.Helper()
	s, err := ParseSecrets([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authority(t *testing.T, s Secrets, role Role, id string) *Authority {
	t.Helper()
	a, err := NewAuthority(s, Identity{role, id})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Keys are functions of the secret, distinct between secrets and purposes.
func TestGossipKeysAreDerived(t *testing.T) {
	ab, _ := secrets(t, secretA, secretB).GossipKeys()
	ba, _ := secrets(t, secretB, secretA).GossipKeys()
	if !bytes.Equal(ab[0], ba[1]) || !bytes.Equal(ab[1], ba[0]) || bytes.Equal(ab[0], ab[1]) {
		t.Fatal("keys don't follow their secrets")
	}
	seed, _ := secrets(t, secretA).derive(0, "authority")
	if bytes.Equal(seed, ab[0]) || len(ab[0]) != 32 {
		t.Fatal("purposes share a key")
	}
}

// shake runs a handshake and gives both sides' errors.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		raw, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(time.Minute))
		conn := tls.Server(raw, server)
		serverErr = conn.Handshake()
		state = conn.ConnectionState()
	})
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(time.Minute))
	clientErr = tls.Client(raw, client).Handshake()
	if clientErr != nil {
		raw.Close()
	}
	wg.Wait()
	return state, serverErr, clientErr
}

// The law of trust: a connection stands exactly if both hold a common secret
// and the server is the one that the client asked for.
func TestHandshake(t *testing.T) {
	a, b := secrets(t, secretA), secrets(t, secretB)
	both, htob := secrets(t, secretA, secretB), secrets(t, secretB, secretA)
	for name, c := range map[string]struct {
		server, client         Secrets
		expect                 Identity
		wantServer, wantClient error
	}{
		"same secret":                {a, a, Identity{Node, "n1"}, nil, nil},
		"rotating":                   {both, htob, Identity{Node, "n1"}, nil, nil},
		"old signs, new verifies it": {a, htob, Identity{Node, "n1"}, ErrUnknownSecret, nil},
		"wrong secret":               {a, b, Identity{Node, "n1"}, nil, ErrUnknownSecret},
		"wrong id":                   {a, a, Identity{Node, "n2"}, nil, ErrIdentity},
		"wrong role":                 {a, a, Identity{Head, "n1"}, nil, ErrIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			server := authority(t, c.server, Node, "n1")
			client := authority(t, c.client, Head, "h1")
			state, serverErr, clientErr := shake(t, server.Server(), client.Client(c.expect))
			if c.wantClient != nil {
				if !errors.Is(clientErr, c.wantClient) {
					t.Fatalf("client: %v, want %v", clientErr, c.wantClient)
				}
				return
			}
			if clientErr != nil {
				t.Fatalf("client: %v", clientErr)
			}
			if !errors.Is(serverErr, c.wantServer) || (c.wantServer == nil) != (serverErr == nil) {
				t.Fatalf("server: %v, want %v", serverErr, c.wantServer)
			}
			if serverErr != nil {
				return
			}
			peer, err := server.Peer(state)
			if err != nil || peer != (Identity{Head, "h1"}) {
				t.Fatalf("peer %v, %v", peer, err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for text, ok := range map[string]bool{
		"manta-head/h-1": true, "manta-node/abc0": true, "manta-node/": false, "manta-user/x": false,
		"node/x": false, "manta-node/a.b": false, "manta-node/a>": false, "manta-node/A": false,
		"manta-node/" + strings.Repeat("a", 64): false, "manta-head": false,
	} {
		got, err := ParseIdentity(text)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil && got.String() != text {
			t.Errorf("%q came back as %q", text, got)
		}
	}
}

// An id survives a restart, and another disk gives another id.
func TestStableID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "head")
	first, err := StableID(dir, "head-0")
	if err != nil || !strings.HasPrefix(first, "head-0-") || len(first) != len("head-0-")+8 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := StableID(dir, "head-0"); err != nil || again != first {
		t.Fatalf("%q after %q, %v", again, first, err)
	}
	if other, err := StableID(t.TempDir(), "head-0"); err != nil || other == first {
		t.Fatalf("%q on another disk, %v", other, err)
	}
	if _, err := StableID(dir, "not.an.id"); !errors.Is(err, ErrIdentity) {
		t.Fatalf("error %v", err)
	}
}

// A device process is bound to its node: its id names the node, whose server it uses.
func TestDeviceProcessBelongsToItsNode(t *testing.T) {
	node := Identity{Node, "n-0-0a1b2c3d"}
	a, b := DeviceOf(node.ID, "m/0"), DeviceOf(node.ID, "m/1")
	if a == b || a != DeviceOf(node.ID, "m/0") {
		t.Fatalf("ids %v and %v", a, b)
	}
	if a.Home() != node || node.Home() != node {
		t.Fatalf("home of %v is %v", a, a.Home())
	}
	long := DeviceOf(strings.Repeat("n", maxIDBytes), "m/0")
	for _, id := range []Identity{a, b, long} {
		if read, err := ParseIdentity(id.String()); err != nil || read != id {
			t.Fatalf("%v is read as %v, %v", id, read, err)
		}
	}
	for _, bad := range []string{"", "-0a1b2c3d", "0a1b2c3d", "n_0a1b2c3d", "N-0a1b2c3d", long.ID + "n"} {
		if err := (Identity{Device, bad}).Check(); err == nil {
			t.Errorf("id %q was accepted", bad)
		}
	}
}
