package chat

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkRender renders long chats: it stands in every request's way.
func BenchmarkRender(b *testing.B) {
	source, err := os.ReadFile(filepath.Join("testdata", "templates", "turns.jinja"))
	if err != nil {
		b.Fatal(err)
	}
	template := mustParse(b, string(source))
	for _, size := range []struct{ messages, bytes int }{{2, 50}, {200, 500}, {20, 100_000}} {
		var messages []map[string]string
		for i := range size.messages {
			role := []string{"user", "assistant"}[i%2]
			messages = append(messages, map[string]string{"role": role, "content": strings.Repeat("x", size.bytes)})
		}
		raw, err := json.Marshal(messages)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("%dx%d", size.messages, size.bytes), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				if _, err := template.Render(Request{Messages: raw, AddGenerationPrompt: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkParse compiles a template, which happens once a model.
func BenchmarkParse(b *testing.B) {
	source, err := os.ReadFile(filepath.Join("testdata", "templates", "turns.jinja"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(source)))
	for b.Loop() {
		if _, err := Parse(string(source)); err != nil {
			b.Fatal(err)
		}
	}
}
