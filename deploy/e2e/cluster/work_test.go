//go:build e2e && unix

package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
)

var (
	batchLines = flag.Int("batch-lines", 400, "lines of the batch that runs while heads and nodes are killed")
	batchKills = flag.Int("batch-kills", 4, "how many kills it bears: the leader, the driver's node, both, in turn")
)

// ask does a request at any head that answers, one head after the other.
func (b *bench) ask(method, path, contentType string, body []byte, into any) {
	b.t.Helper()
	var failure error
	deadline := time.After(patience)
	for i := 0; ; i++ {
		text, err := b.askAt(i%headCount, method, path, contentType, body)
		if err == nil {
			if into == nil {
				return
			}
			if raw, ok := into.(*[]byte); ok {
				*raw = text
				return
			}
			if err := json.Unmarshal(text, into); err != nil {
				b.t.Fatalf("%s: %s", path, text)
			}
			return
		}
		failure = err
		select {
		case <-deadline:
			b.t.Fatalf("%s %s: %v", method, path, failure)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// hasty asks another head when one does not answer.
var hasty = &http.Client{Timeout: 30 * time.Second}

func (b *bench) askAt(head int, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, "http://"+b.API[head]+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := hasty.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	return text, err
}

// upload gives the id of a new input file.
func (b *bench) upload(data []byte) string {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, err := w.CreateFormFile("file", "in.jsonl")
	if err == nil {
		_, err = part.Write(data)
	}
	if err := errors.Join(err, w.WriteField("purpose", "batch"), w.Close()); err != nil {
		b.t.Fatal(err)
	}
	var file struct{ ID string }
	b.ask("POST", "/v1/files", w.FormDataContentType(), form.Bytes(), &file)
	return file.ID
}

type details struct {
	Status    string
	Message   string
	Runner    string `json:"driver_node_id"`
	Lines     int    `json:"manta_lines"`
	Completed int    `json:"manta_lines_completed"`
	Output    string `json:"manta_output_file_id"`
}

func (b *bench) submit(id, input string) {
	body := fmt.Appendf(nil, `{"submission_id":%q,"entrypoint":"manta batch --input %s"}`, id, input)
	text, err := b.askAt(0, "POST", "/api/jobs/", "application/json", body)
	if err != nil {
		b.t.Fatalf("submit: %v %s", err, text)
	}
}

// job follows a job until it holds.
func (b *bench) job(id, what string, holds func(details) bool) details {
	b.t.Helper()
	deadline := time.After(5 * patience)
	for {
		var d details
		b.ask("GET", "/api/jobs/"+id, "", nil, &d)
		if holds(d) {
			return d
		}
		select {
		case <-deadline:
			b.t.Fatalf("job %s: %s did not come: %+v", id, what, d)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func over(d details) bool { return d.Status != "PENDING" && d.Status != "RUNNING" }

// answers gives a batch's texts; each line stands there once.
func (b *bench) answers(data []byte) map[string]string {
	b.t.Helper()
	all := map[string]string{}
	for line := range bytes.Lines(data) {
		var r struct {
			ID       string `json:"custom_id"`
			Response struct {
				Body struct{ Choices []struct{ Text string } }
			}
		}
		if err := json.Unmarshal(line, &r); err != nil || len(r.Response.Body.Choices) != 1 {
			b.t.Fatalf("a result: %s", line)
		}
		if _, twice := all[r.ID]; twice {
			b.t.Errorf("%s stands twice in the output", r.ID)
		}
		all[r.ID] = r.Response.Body.Choices[0].Text
	}
	return all
}

// headNamed gives the name of the head of an id.
func headNamed(id string) string { name, _, _ := strings.Cut(id, "-"); return name }

// A batch outlives the leading head that runs it, the node that computes it and
// both: each line stands once in the output, with the tokens of the undisturbed run.
// Its bytes outlive any head's disk, and the end of all heads at once. And a key's
// limit holds over three heads, across an election too.
func TestWorkOutlivesHeads(t *testing.T) {
	b := newBench(t)
	b.until("heads and nodes", func(s *api.ClusterState) bool { return len(s.Heads) == headCount && len(s.Nodes) == nodeCount })
	c := b.client(0)
	defer c.Close()
	body := map[string]any{"model": "smollm2", "max_model_len": 256, "max_num_seqs": 32, "dtype": "float32"}
	if err := c.Post(t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		t.Fatal(err)
	}
	b.until("a ready replica", ready)
	var data bytes.Buffer
	for i := range *batchLines {
		fmt.Fprintf(&data, `{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"model":"smollm2","prompt":"Number %d is","max_tokens":4,"ignore_eos":true}}`+"\n", i, i)
	}
	input := b.upload(data.Bytes())
	b.submit("calm", input)
	calm := b.job("calm", "its end", over)
	if calm.Status != "SUCCEEDED" || calm.Completed != *batchLines {
		t.Fatalf("undisturbed: %+v", calm)
	}
	var output []byte
	b.ask("GET", "/v1/files/"+calm.Output+"/content", "", nil, &output)
	want := b.answers(output)

	t.Run("kills", func(t *testing.T) {
		b.t = t
		b.submit("kills", input)
		for i := range *batchKills {
			before := b.job("kills", "progress", func(d details) bool {
				return over(d) || d.Runner != "" && d.Completed > i*(*batchLines)/(*batchKills+1)
			})
			if over(before) {
				t.Logf("over after %d kills", i)
				break
			}
			victims := [][]string{{headNamed(before.Runner)}, {b.rank(0)}, {headNamed(before.Runner), b.rank(0)}}[i%3]
			for _, victim := range victims {
				b.signal(victim, syscall.SIGKILL)
			}
			t.Logf("killed %v after %d of %d lines", victims, before.Completed, before.Lines)
			for _, victim := range victims {
				b.Start(victim)
			}
			b.until("a ready replica", ready)
		}
		d := b.job("kills", "its end", over)
		if d.Status != "SUCCEEDED" || d.Completed != *batchLines {
			t.Fatalf("%+v", d)
		}
		b.ask("GET", "/v1/files/"+d.Output+"/content", "", nil, &output)
		got := b.answers(output)
		for id, text := range want {
			if got[id] != text {
				t.Errorf("line %s: %q, undisturbed %q", id, got[id], text)
			}
		}
		var log struct{ Logs string }
		b.ask("GET", "/api/jobs/kills/logs", "", nil, &log)
		t.Logf("%s", log.Logs)
	})
	t.Run("a lost disk", func(t *testing.T) {
		b.t = t
		var log struct{ Logs string }
		b.ask("GET", "/api/jobs/calm/logs", "", nil, &log)
		for i := range headCount {
			name := fmt.Sprint("head", i)
			tokenizer := largest(filepath.Join(b.Dir, name, "head", "store", "objects"))
			b.signal(name, syscall.SIGKILL)
			if err := os.RemoveAll(filepath.Join(b.Dir, name)); err != nil {
				t.Fatal(err)
			}
			b.Start(name)
			// It has all bytes again, by itself: its own disk is asked, not its API. Two
			// disks lost before that are more than a majority bears.
			stored := filepath.Join(b.Dir, name, "head", "store", "objects")
			b.until("three heads, and the bytes on the new disk", func(s *api.ClusterState) bool {
				return len(s.Heads) == headCount && largest(stored) == tokenizer && holds(stored, data.Bytes(), output, []byte(log.Logs))
			})
			text, err := b.askAt(i, "GET", "/v1/files/"+calm.Output+"/content", "", nil)
			if err != nil || len(b.answers(text)) != *batchLines {
				t.Errorf("head %d after it lost its disk: %v", i, err)
			}
		}
	})
	t.Run("all heads at once", func(t *testing.T) {
		b.t = t
		for i := range headCount {
			b.signal(fmt.Sprint("head", i), syscall.SIGKILL)
		}
		for i := range headCount {
			b.Start(fmt.Sprint("head", i)) // raft and NATS take other ports
		}
		for path, want := range map[string][]byte{"/v1/files/" + input + "/content": data.Bytes()} {
			var got []byte
			if b.ask("GET", path, "", nil, &got); !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d", path, len(got), len(want))
			}
		}
		var log struct{ Logs string }
		if b.ask("GET", "/api/jobs/calm/logs", "", nil, &log); !strings.Contains(log.Logs, "SUCCEEDED") {
			t.Errorf("the log: %q", log.Logs)
		}
		b.until("a ready replica", ready)
	})
	t.Run("a limit", func(t *testing.T) {
		b.t = t
		b.limited(10, 12*time.Second)
	})
}

// largest gives the name of a head's largest object, which is the tokenizer.
func largest(dir string) (name string) {
	most := int64(0)
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error { // what is not there is not the largest
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Size() > most {
			name, most = d.Name(), info.Size()
		}
		return nil
	})
	return name
}

// holds tells whether each line of the texts lies somewhere among a head's objects.
func holds(dir string, texts ...[]byte) bool {
	var all bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		object, err := os.ReadFile(path)
		all.Write(object)
		all.WriteByte('\n') // a tokenizer ends with none
		return err
	})
	if err != nil {
		return false // it is being written
	}
	there := map[string]bool{}
	for line := range bytes.Lines(all.Bytes()) {
		there[string(line)] = true
	}
	for _, text := range texts {
		for line := range bytes.Lines(text) {
			if !there[string(line)] {
				return false
			}
		}
	}
	return true
}

// limited floods all heads with a key's requests, kills the leader in the middle,
// and counts what is let through.
func (b *bench) limited(perSecond float64, length time.Duration) {
	var made struct{ Key string }
	c := b.client(0)
	defer c.Close()
	name := map[string]any{"name": "limited", "requests_per_second": perSecond}
	if err := c.Post(b.t.Context(), "/api/keys", name, &made); err != nil {
		b.t.Fatal(err)
	}
	var mu sync.Mutex
	through, refused, answered, start := 0, 0, 0, time.Now()
	var all sync.WaitGroup
	for head := range headCount {
		all.Go(func() {
			tick := time.NewTicker(25 * time.Millisecond) // 40 requests a second at each head
			defer tick.Stop()
			for time.Since(start) < length {
				<-tick.C
				all.Go(func() {
					request, err := http.NewRequest("POST", "http://"+b.API[head]+"/v1/completions", strings.NewReader(`{"model":"smollm2","prompt":"a","max_tokens":1}`))
					if err != nil {
						b.t.Error(err)
						return
					}
					request.Header.Set("Authorization", "Bearer "+made.Key)
					response, err := hasty.Do(request)
					if err != nil {
						return // the head that was killed
					}
					response.Body.Close()
					mu.Lock()
					defer mu.Unlock()
					answered++
					switch response.StatusCode {
					case http.StatusOK:
						through++
					case http.StatusTooManyRequests:
						refused++
					}
				})
			}
		})
	}
	<-time.After(length / 2)
	b.submit("who-leads", b.upload([]byte(`{"custom_id":"0","method":"POST","url":"/v1/completions","body":{"model":"smollm2","prompt":"a","max_tokens":1}}`)))
	leader := headNamed(b.job("who-leads", "its runner", func(d details) bool { return d.Runner != "" }).Runner)
	b.signal(leader, syscall.SIGKILL)
	all.Wait()
	took := time.Since(start).Seconds()
	most := perSecond*took + perSecond + headCount // one second saved up, one request a head
	b.t.Logf("%d let through in %.1f s, at most %.0f; %d refused; %s, which led, was killed", through, took, most, refused, leader)
	// A slow machine lets less through because it does less, and refuses less then.
	least := min(perSecond*length.Seconds(), float64(answered)) / 2
	if float64(through) > most || float64(through) < least {
		b.t.Errorf("%d of %d let through in %.1f s, at least %.0f and at most %.0f", through, answered, took, least, most)
	}
	b.Start(leader)
}
