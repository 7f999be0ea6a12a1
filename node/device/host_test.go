package device

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a launcher whose processes run a shell script.
type rig struct {
	launcher *Launcher
	link     *link.Link
	changed  chan struct{}
}

func newRig(t *testing.T, script string) *rig {
	t.Helper()
	secrets, err := trust.ParseSecrets([]byte("the secret of the launcher's tests"))
	if err != nil {
		t.Fatal(err)
	}
	self := trust.Identity{Role: trust.Node, ID: "n1"}
	authority, err := trust.NewAuthority(secrets, self)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{changed: make(chan struct{}, 1)}
	log := slog.New(slog.DiscardHandler)
	r.link, err = link.Start(link.Config{
		Authority: authority, Listen: "127.0.0.1:0", Logger: log,
		Resolve: func(trust.Identity) (string, error) { return r.link.Address(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.link.Close)
	r.launcher, err = NewLauncher(LauncherConfig{
		Argv: []string{"sh", "-c", script}, Node: self.ID, Secrets: secrets, Link: r.link, Logger: log,
		Members: func() []wire.Member { return nil },
		Changed: func() {
			select {
			case r.changed <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.launcher.Close)
	return r
}

// await waits for a report.
func (r *rig) await(t *testing.T, h interface{ Report() wire.ReplicaReport }, phase wire.Phase, epoch uint64) wire.ReplicaReport {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		if now := h.Report(); now.Phase == phase && now.Epoch == epoch {
			return now
		}
		select {
		case <-r.changed:
		case <-limit:
			t.Fatalf("no phase %s in epoch %d: %+v", phase, epoch, h.Report())
		}
	}
}

// Starts are bounded: a process that dies again and again before its first step
// makes the epoch fail, with its last words as the reason, and only another epoch
// starts one again.
func TestStartsAreBounded(t *testing.T) {
	r := newRig(t, `echo "panic: no luck"; exit 3`)
	a := wire.Assignment{Replica: "m/0", Epoch: 1}
	h := r.launcher.Host(a)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		h.Run(ctx)
		close(ended)
	}()
	for epoch := uint64(1); epoch <= 2; epoch++ {
		a.Epoch = epoch
		h.Want(a)
		report := r.await(t, h, wire.PhaseFailed, epoch)
		if !strings.Contains(report.Reason, "no luck") || !strings.Contains(report.Reason, "exit status 3") {
			t.Errorf("reason %q", report.Reason)
		}
	}
	stop()
	<-ended
	if len(r.launcher.living()) > 0 {
		t.Error("the launcher still has it")
	}
}

// A process is stopped by its life line; its log is passed on whatever it is.
func TestStopCutsTheLifeLine(t *testing.T) {
	r := newRig(t, `read life; head -c 100000 /dev/zero; echo; echo '{"level":"ERROR","msg":"x","error":"y"}'; echo >&2 '{"level":7}'; cat >/dev/null`)
	h := r.launcher.Host(wire.Assignment{Replica: "m/0", Epoch: 1})
	ended := make(chan struct{})
	go func() {
		h.Run(t.Context())
		close(ended)
	}()
	alive := func() bool {
		_, alive := h.(*host).orders()
		return alive
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !alive() {
		<-tick.C
	}
	h.Stop()
	<-ended
}

// What a process that is gone once said is not heard any more.
func TestOnlyTheLivingProcessIsHeard(t *testing.T) {
	r := newRig(t, "exit 0")
	h := r.launcher.Host(wire.Assignment{Replica: "m/0", Epoch: 1}).(*host)
	told := wire.Told{Boot: "b", Report: wire.ReplicaReport{Replica: "m/0", Epoch: 1, Phase: wire.PhaseReady}, Credit: &wire.Credit{Choices: 4}}
	if h.hear(told) {
		t.Fatal("heard before there was a process")
	}
	h.boot = "b"
	if !h.hear(told) || h.Report().Phase != wire.PhaseReady {
		t.Fatalf("not heard: %+v", h.Report())
	}
	if c, ok := h.Credit(1, true); !ok || c.Choices != 0 {
		t.Errorf("credit while draining: %+v", c)
	}
	if _, wasReady := h.died(errBroken); !wasReady {
		t.Error("it was ready")
	}
	if _, ok := h.Credit(1, false); ok || h.hear(told) {
		t.Error("a process that is gone gives credit, or is heard")
	}
}

func TestReachable(t *testing.T) {
	for given, want := range map[string]string{
		"0.0.0.0:1": "127.0.0.1:1", "[::]:2": "127.0.0.1:2", "10.0.0.1:3": "10.0.0.1:3", "[fe80::1]:4": "[fe80::1]:4",
	} {
		if got := reachable(given); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
	}
}
