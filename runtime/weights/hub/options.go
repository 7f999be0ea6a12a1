package hub

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Options set up a Hub. FromEnvironment fills them as huggingface_hub does.
type Options struct {
	Endpoint string // https://huggingface.co
	Cache    string // folder
	Token    string
	Offline  bool
}

// FromEnvironment reads HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN,
// HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE.
// Without a token in the environment, the one that `hf auth login` stored is used.
func FromEnvironment(lookup func(string) string) (Options, error) {
	o := Options{
		Endpoint: strings.TrimRight(first(lookup("HF_ENDPOINT"), "https://huggingface.co"), "/"),
		Token:    strings.TrimSpace(first(lookup("HF_TOKEN"), lookup("HUGGING_FACE_HUB_TOKEN"))),
		Offline:  isTrue(first(lookup("HF_HUB_OFFLINE"), lookup("TRANSFORMERS_OFFLINE"))),
	}
	if u, err := url.Parse(o.Endpoint); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return o, fmt.Errorf("hub: HF_ENDPOINT %q is no http(s) address", o.Endpoint)
	}
	home := lookup("HOME")
	cacheHome := first(lookup("XDG_CACHE_HOME"), join(home, ".cache"))
	hfHome := expand(first(lookup("HF_HOME"), join(cacheHome, "huggingface")), home)
	o.Cache = expand(first(lookup("HF_HUB_CACHE"), lookup("HUGGINGFACE_HUB_CACHE"), join(hfHome, "hub")), home)
	if o.Token == "" {
		path := expand(first(lookup("HF_TOKEN_PATH"), join(hfHome, "token")), home)
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && path != "" {
			return o, fmt.Errorf("hub: token file: %w", err)
		}
		o.Token = strings.TrimSpace(string(data))
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return o, errors.New("hub: the token (HF_TOKEN) has characters that no token has")
	}
	return o, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// join gives "" for a folder that is not known.
func join(folder, name string) string {
	if folder == "" {
		return ""
	}
	return filepath.Join(folder, name)
}

func expand(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok && home != "" {
		return filepath.Join(home, rest)
	}
	return path
}

func isTrue(s string) bool {
	switch strings.ToUpper(s) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}
