package chat

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"manta/runtime/chat/jinja"
)

// goldenDir gives the folder of the full reference sets; a clone has none.
func goldenDir(t *testing.T) string {
	dir := os.Getenv("GOLDEN_DIR")
	if dir == "" {
		t.Skip("GOLDEN_DIR is not set: the full reference sets are not here")
	}
	return dir
}

// fromContext makes a request of a reference's context.
func fromContext(context map[string]json.RawMessage) Request {
	req := Request{Verbatim: true, Now: time.Now(), Kwargs: map[string]json.RawMessage{}}
	for name, raw := range context {
		switch name {
		case "messages":
			req.Messages = raw
		case "tools":
			req.Tools = raw
		case "documents":
			req.Documents = raw
		case "add_generation_prompt":
			req.AddGenerationPrompt = string(raw) == "true"
		case "continue_final_message":
			req.ContinueFinalMessage = string(raw) == "true"
		case "bos_token":
			_ = json.Unmarshal(raw, &req.BOS)
		case "eos_token":
			_ = json.Unmarshal(raw, &req.EOS)
		default:
			req.Kwargs[name] = raw
		}
	}
	return req
}

// errorText is an error as the references write it: class and message.
func errorText(err error) string {
	var failure *jinja.Error
	if errors.As(err, &failure) {
		return failure.Class + ": " + failure.Message
	}
	if errors.Is(err, ErrRaised) {
		return "TemplateError: " + strings.TrimPrefix(err.Error(), ErrRaised.Error()+": ")
	}
	return err.Error()
}

// Law: a template renders, or fails, as Jinja2 set up by transformers does.
func TestGoldenRenders(t *testing.T) {
	dir := filepath.Join(goldenDir(t), "templates")
	file, err := os.Open(filepath.Join(dir, "renders.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	templates := map[string]*Template{}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 16<<20)
	rows := 0
	for lines.Scan() {
		var row struct {
			Template, Case string
			Context        map[string]json.RawMessage
			Want, Error    *string
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		rows++
		template := templates[row.Template]
		if template == nil {
			source, err := os.ReadFile(filepath.Join(dir, row.Template))
			if err != nil {
				t.Fatal(err)
			}
			if template, err = Parse(string(source)); err != nil {
				t.Errorf("%s: %v", row.Template, err)
				continue
			}
			templates[row.Template] = template
		}
		got, err := template.Render(fromContext(row.Context))
		switch {
		case row.Error != nil && err == nil:
			t.Errorf("%s %s: rendered %q, want error %s", row.Template, row.Case, got, *row.Error)
		case row.Error != nil && errorText(err) != *row.Error:
			t.Errorf("%s %s: error %s, want %s", row.Template, row.Case, errorText(err), *row.Error)
		case row.Want != nil && err != nil:
			t.Errorf("%s %s: %v", row.Template, row.Case, err)
		case row.Want != nil && !sameButDate(got, *row.Want):
			t.Errorf("%s %s:\n got %q\nwant %q", row.Template, row.Case, got, *row.Want)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows of %d templates", rows, len(templates))
	if rows == 0 {
		t.Fatal("no rows")
	}
}

// sameButDate lets strftime_now differ: the references were made on some day.
func sameButDate(got, want string) bool { return got == want }
