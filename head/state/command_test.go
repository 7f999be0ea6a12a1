package state

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"manta/parallel/shard"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/fields.txt anew")

var at = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func command(changes ...Change) Command { return Command{At: at, Changes: changes} }

func deployment(name string, replicas int) Change {
	return Change{PutDeployment: &Deployment{Name: name, Model: "m", Replicas: replicas, Layout: shard.Layout{Tensor: 1, Pipeline: 1}}}
}

func replica(id string, after uint64) Change {
	return Change{StartReplica: &StartReplica{Replica: Replica{ID: id, Deployment: "d"}, After: after}}
}

func key(name string, hash byte) Change { return Change{PutKey: &Key{Name: name, Hash: Digest{hash}}} }

func job(id string, token byte) Change { return Change{PutJob: &Job{ID: id, Token: Digest{token}}} }

func claim(id string, after uint64) Change {
	return Change{ClaimJob: &ClaimJob{ID: id, Runner: "h", After: after}}
}

func report(id string, claim uint64, s JobStatus) Change {
	return Change{ReportJob: &JobReport{ID: id, Claim: claim, Status: s}}
}

func phase(id string, epoch uint64, p Phase) Change {
	return Change{SetPhase: &SetPhase{Replica: id, Epoch: epoch, Phase: p}}
}

// apply runs commands at indices 10, 11, …; the last one's error comes back.
func apply(t *testing.T, commands ...Command) (*View, error) {
	t.Helper()
	v := empty()
	var err error
	for i, c := range commands {
		if err != nil {
			t.Fatalf("command %d: %v", i-1, err)
		}
		c.Version = c.needs()
		v, err = v.Apply(uint64(10+i), c)
	}
	return v, err
}

func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		commands []Command
		want     error
	}{
		"replica of nothing":      {[]Command{command(replica("r", 0))}, ErrUnknown},
		"replica exists":          {[]Command{command(deployment("d", 1)), command(replica("r", 0)), command(replica("r", 0))}, ErrStale},
		"restart of a past epoch": {[]Command{command(deployment("d", 1)), command(replica("r", 0)), command(replica("r", 10))}, ErrStale},
		"restart":                 {[]Command{command(deployment("d", 1)), command(replica("r", 0)), command(replica("r", 11))}, nil},
		"phase":                   {[]Command{command(deployment("d", 1), replica("r", 0)), command(phase("r", 10, Ready))}, nil},
		"phase of a past epoch":   {[]Command{command(deployment("d", 1), replica("r", 0)), command(replica("r", 10)), command(phase("r", 10, Ready))}, ErrStale},
		"delete unknown":          {[]Command{command(Change{DeleteDeployment: "d"})}, ErrUnknown},
		"drain unknown":           {[]Command{command(Change{DrainNode: &DrainNode{ID: "n"}})}, ErrUnknown},
		"home":                    {[]Command{command(deployment("d", 1)), command(Change{AddHome: &AddHome{"d", 10, "n"}})}, nil},
		"home of an old version":  {[]Command{command(deployment("d", 1)), command(Change{AddHome: &AddHome{"d", 9, "n"}})}, ErrStale},
		"key":                     {[]Command{command(key("a", 1)), command(key("a", 1)), command(key("b", 2), Change{DeleteKey: "a"})}, nil},
		"a key's name is taken":   {[]Command{command(key("a", 1)), command(key("a", 2))}, ErrStale},
		"a key has a name":        {[]Command{command(key("a", 1)), command(key("b", 1))}, ErrStale},
		"revoke unknown":          {[]Command{command(Change{DeleteKey: "a"})}, ErrUnknown},
		"job":                     {[]Command{command(job("j", 1)), command(job("j", 1)), command(claim("j", 0)), command(report("j", 12, Running)), command(claim("j", 12))}, nil},
		"job's id is taken":       {[]Command{command(job("j", 1)), command(job("j", 2))}, ErrStale},
		"claim of an old claim":   {[]Command{command(job("j", 1)), command(claim("j", 0)), command(claim("j", 0))}, ErrStale},
		"report of an old claim":  {[]Command{command(job("j", 1)), command(claim("j", 0)), command(claim("j", 11)), command(report("j", 11, Running))}, ErrStale},
		"report after the end":    {[]Command{command(job("j", 1)), command(claim("j", 0)), command(report("j", 11, Succeeded)), command(report("j", 11, Running))}, ErrStale},
		"the last report again":   {[]Command{command(job("j", 1)), command(claim("j", 0)), command(report("j", 11, Succeeded)), command(report("j", 11, Succeeded))}, nil},
		"stop before the claim":   {[]Command{command(job("j", 1)), command(Change{StopJob: "j"}), command(claim("j", 0))}, ErrStale},
		"delete a running job":    {[]Command{command(job("j", 1)), command(claim("j", 0)), command(Change{DeleteJob: "j"})}, ErrStale},
		"delete a stopped job":    {[]Command{command(job("j", 1)), command(Change{StopJob: "j"}), command(Change{DeleteJob: "j"})}, nil},
		"file":                    {[]Command{command(Change{PutFile: &File{ID: "f"}}), command(Change{DeleteFile: "f"})}, nil},
		"delete unknown file":     {[]Command{command(Change{DeleteFile: "f"})}, ErrUnknown},
		"nothing":                 {[]Command{command(Change{})}, ErrMalformed},
		"node":                    {[]Command{command(Change{PutNode: &Node{ID: "n"}}), command(Change{DrainNode: &DrainNode{ID: "n", Drained: true}})}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := apply(t, c.commands...); !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
		})
	}
}

// A command is all or nothing, and published Views never change.
func TestApplyIsAtomicAndCopies(t *testing.T) {
	before, err := apply(t, command(deployment("d", 1), replica("r", 0)))
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := before.encode()
	after, err := before.Apply(11, command(deployment("e", 1), Change{DeleteReplica: "r"}, Change{DeleteReplica: "unknown"}))
	if !errors.Is(err, ErrUnknown) || len(after.Deployments) != 1 || len(after.Replicas) != 1 || after.Index != 11 {
		t.Fatalf("half a command was applied: %+v, %v", after, err)
	}
	if _, err := before.Apply(11, command(deployment("e", 1), Change{DeleteReplica: "r"}, phase("x", 1, Ready))); err == nil {
		t.Fatal("no error")
	}
	if now, _ := before.encode(); !bytes.Equal(now, kept) {
		t.Fatal("a published view changed")
	}
}

// Epochs only grow, even over the deletion of a replica; drained stays with the
// node; a deployment's version grows when replicas must be made anew, not when
// it is scaled.
func TestApplyKeepsWhatOthersWrite(t *testing.T) {
	v, err := apply(t, command(deployment("d", 1), replica("r", 0)), command(Change{DeleteReplica: "r"}), command(replica("r", 0)),
		command(Change{PutNode: &Node{ID: "n"}}, Change{DrainNode: &DrainNode{ID: "n", Drained: true}}), command(Change{PutNode: &Node{ID: "n", Labels: map[string]string{"a": "b"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if e := v.Replicas["r"].Epoch; e != 12 {
		t.Errorf("epoch %d, want 12", e)
	}
	if !v.Nodes["n"].Drained {
		t.Error("a node's report took its drain back")
	}
	scaled, _ := v.Apply(20, command(deployment("d", 5)))
	if d := scaled.Deployments["d"]; d.Version != 10 || d.Replicas != 5 || !d.Created.Equal(at) {
		t.Errorf("scaled: %+v", d)
	}
	other := deployment("d", 5)
	other.PutDeployment.Revision = "new"
	changed, _ := scaled.Apply(21, command(other))
	if d := changed.Deployments["d"]; d.Version != 21 {
		t.Errorf("changed: version %d", d.Version)
	}
}

// A command that is sent again, because nobody heard what became of it, takes
// effect once, and its outcome is that of the first time.
func TestCommandsTakeEffectOnce(t *testing.T) {
	put, gone := deployment("d", 1), Change{DeleteDeployment: "d"}
	v, err := apply(t,
		Command{ID: CommandID{1}, At: at, Changes: []Change{put}},
		Command{ID: CommandID{2}, At: at, Changes: []Change{gone}},
		Command{ID: CommandID{1}, At: at, Changes: []Change{put}},
		Command{ID: CommandID{2}, At: at, Changes: []Change{gone}})
	if err != nil || len(v.Deployments) != 0 {
		t.Fatalf("sent again: %+v, %v", v.Deployments, err)
	}
	v, err = v.Apply(20, Command{ID: CommandID{3}, At: at, Changes: []Change{gone}})
	if !errors.Is(err, ErrUnknown) {
		t.Fatalf("a second delete: %v", err)
	}
	v, _ = v.Apply(21, Command{ID: CommandID{4}, At: at, Changes: []Change{put}})
	if v, err = v.Apply(22, Command{ID: CommandID{3}, At: at, Changes: []Change{gone}}); !errors.Is(err, ErrUnknown) || len(v.Deployments) != 1 {
		t.Fatalf("a refused command, sent again: %+v, %v", v.Deployments, err)
	}
	for i := range 3 * maxOutcomes {
		v, _ = v.Apply(uint64(30+i), Command{ID: CommandID{5, byte(i), byte(i >> 8)}, At: at, Changes: []Change{deployment("d", i)}})
	}
	if len(v.Outcomes) != maxOutcomes || len(v.Events) != maxEvents {
		t.Errorf("%d outcomes, %d events", len(v.Outcomes), len(v.Events))
	}
}

// Commands tell what they did, in order; what changes nothing tells nothing, and a
// refused command leaves no trace.
func TestEventsTellWhatHappened(t *testing.T) {
	v, err := apply(t,
		command(Change{PutNode: &Node{ID: "n"}}), command(Change{PutNode: &Node{ID: "n", Labels: map[string]string{"a": "b"}}}),
		command(deployment("d", 1)), command(deployment("d", 1)), command(replica("r", 0)), command(phase("r", 14, Loading)),
		command(phase("r", 14, Failed)), command(replica("r", 14)), command(phase("r", 17, Ready)),
		command(Change{Scale: &Scale{Deployment: "d", Auto: true}}), command(Change{DrainNode: &DrainNode{ID: "n", Drained: true}}), command(Change{DrainNode: &DrainNode{ID: "n", Drained: true}}),
		command(Change{DeleteReplica: "r"}), command(Change{DeleteDeployment: "d"}))
	if err != nil {
		t.Fatal(err)
	}
	if v, err = v.Apply(40, command(deployment("e", 1), Change{DeleteReplica: "r"})); err == nil {
		t.Fatal("no error")
	}
	var got []string
	for _, e := range v.Events {
		got = append(got, e.Reason+" "+e.Kind+"/"+e.Name)
		if !e.At.Equal(at) || e.Warning != (e.Reason == "Failed") {
			t.Errorf("%+v", e)
		}
	}
	want := []string{
		"Joined node/n", "Created deployment/d", "Placed replica/r", "Failed replica/r", "Restarted replica/r", "Ready replica/r",
		"Scaled deployment/d", "Drained node/n", "Removed replica/r", "Deleted deployment/d",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// Apply is deterministic: a log replayed, or a snapshot and the rest of the log,
// give the same bytes.
func TestReplayGivesTheSameState(t *testing.T) {
	log := []Command{
		command(deployment("d", 2), deployment("e", 1)), command(replica("r", 0)), command(replica("s", 0)),
		command(phase("r", 11, Ready)), command(Change{PutNode: &Node{ID: "n", Devices: []Device{{ID: "cpu:0", Memory: 5}}}}),
		command(Change{PutJob: &Job{ID: "j", Created: at}}), command(key("k", 7)), command(Change{DeleteDeployment: "e"}), command(deployment("d", 3)),
	}
	whole, err := apply(t, log...)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := whole.encode()
	for cut := range log {
		v, _ := apply(t, log[:cut]...)
		data, err := v.encode()
		if err != nil {
			t.Fatal(err)
		}
		if v, err = decodeSnapshot(data); err != nil {
			t.Fatal(err)
		}
		for i, c := range log[cut:] {
			data, _ := c.Encode()
			if c, err = DecodeCommand(data); err != nil {
				t.Fatal(err)
			}
			v, _ = v.Apply(uint64(10+cut+i), c)
		}
		if got, _ := v.encode(); !bytes.Equal(got, want) {
			t.Fatalf("cut at %d: states differ", cut)
		}
		if !reflect.DeepEqual(v.Nodes, whole.Nodes) {
			t.Fatalf("cut at %d: nodes differ", cut)
		}
	}
}

func TestVersionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		command Command
		want    int
	}{
		{command(deployment("d", 1)), 1},
		{command(phase("r", 1, Ready), key("a", 1)), 2},
		{command(Change{DeleteKey: "a"}), 2},
		{Command{ID: CommandID{1}, At: at, Changes: []Change{deployment("d", 1)}}, 2},
		{command(replica("r", 0)), 1},
		{command(Change{StartReplica: &StartReplica{Replica: Replica{ID: "r", Shards: []Placement{{Node: "n"}, {Node: "m", Memory: 1}}}}}), 3},
		{command(Change{DrainNode: &DrainNode{ID: "n", Drained: true}}), 1},
		{command(Change{DrainNode: &DrainNode{ID: "n", Drained: true, Forced: true}}), 3},
		{command(Change{PutNode: &Node{ID: "n", Forced: true}}), 3},
		{command(Change{PutFile: &File{ID: "f"}}), 2},
		{command(Change{PutFile: &File{ID: "f", Lasts: time.Hour}}), 5},
		{command(Change{ReportJob: &JobReport{ID: "j", Batch: &BatchJob{Completed: 1}}}), 2},
		{command(Change{ReportJob: &JobReport{ID: "j", Batch: &BatchJob{Usage: BatchUsage{Answers: 1}}}}), 5},
	} {
		data, err := c.command.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if read, err := DecodeCommand(data); err != nil || read.Version != c.want {
			t.Errorf("%+v is written in version %d, want %d; %v", c.command.Changes, read.Version, c.want, err)
		}
	}
	v, err := apply(t, command(deployment("d", 1)))
	if data, _ := v.encode(); err != nil || v.Format > 1 || !bytes.Equal(data[:4], []byte{0xa2, 1, 1, 2}) {
		t.Errorf("a state without keys is of format %d, its snapshot begins with %x", v.Format, data[:4])
	}
	later, _ := encoding.Marshal(Command{Version: Version + 1})
	if _, err := DecodeCommand(later); !errors.Is(err, ErrVersion) {
		t.Errorf("command: %v", err)
	}
	view, _ := encoding.Marshal(snapshot{Version: Version + 1, View: *empty()})
	if _, err := decodeSnapshot(view); !errors.Is(err, ErrVersion) {
		t.Errorf("snapshot: %v", err)
	}
}

// What a command or a snapshot may hold is written down with the version that has it
// first: a new field is seen here, and is of a later version than the one before.
func TestFieldsNameTheirVersion(t *testing.T) {
	var fields []string
	var walk func(path string, version int, of reflect.Type)
	walk = func(path string, version int, of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(path, version, of.Elem())
		case reflect.Struct:
			for i := range of.NumField() {
				field := of.Field(i)
				if !field.IsExported() {
					continue
				}
				named, _ := strconv.Atoi(field.Tag.Get("since"))
				if named > Version {
					t.Errorf("%s.%s is of version %d, this program reads %d: raise Version", path, field.Name, named, Version)
				}
				at := max(version, named)
				fields = append(fields, fmt.Sprintf("%d %s.%s", at, path, field.Name))
				walk(path+"."+field.Name, at, field.Type)
			}
		}
	}
	walk("Command", 1, reflect.TypeFor[Command]())
	got := strings.Join(fields, "\n") + "\n"
	const golden = "testdata/fields.txt"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	known := strings.Split(string(want), "\n")
	for _, field := range fields {
		if !slices.Contains(known, field) {
			t.Errorf("%s is new: tag it with since:\"%d\", or more if heads were released that read %d, raise Version, and run with -rewrite", field, Version, Version)
		}
	}
	if got != string(want) {
		t.Errorf("%s is not what commands hold: run with -rewrite, and look at what changed", golden)
	}
}

// Whatever bytes stand in the log, every head comes to the same conclusion and
// none panics.
func FuzzDecodeCommand(f *testing.F) {
	data, _ := command(deployment("d", 1), replica("r", 0)).Encode()
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeCommand(data)
		if err != nil {
			return
		}
		a, errA := empty().Apply(1, c)
		b, errB := empty().Apply(1, c)
		if (errA == nil) != (errB == nil) || !reflect.DeepEqual(a, b) {
			t.Fatal("two heads disagree")
		}
	})
}
