package weights

import (
	"context"
	"path/filepath"

	"manta/runtime/weights/hub"
)

// hubOptions reads the environment; the download folder, where one is named, is
// the cache, as vLLM's --download-dir.
func (l *Library) hubOptions() (hub.Options, error) {
	o, err := hub.FromEnvironment(l.lookup)
	if err != nil {
		return o, err
	}
	if l.dir != "" {
		o.Cache, err = filepath.Abs(l.dir)
	}
	return o, err
}

func (r Reference) hubRequest() hub.Request {
	return hub.Request{Repository: r.Name, Revision: r.Revision, Variant: r.Variant, Check: checkConfig}
}

func (l *Library) pullHub(ctx context.Context, ref Reference, progress func(Progress)) (Pulled, error) {
	o, err := l.hubOptions()
	if err != nil {
		return Pulled{}, err
	}
	h, err := hub.New(o)
	if err != nil {
		return Pulled{}, err
	}
	defer h.Close()
	report := func(file string, done, total int64) { progress(Progress{File: file, Done: done, Total: total}) }
	waiting := func(file string) { l.waiting(ref.String() + " " + file)() }
	s, err := h.Pull(ctx, ref.hubRequest(), report, waiting)
	if err != nil {
		return Pulled{}, err
	}
	return Pulled{Path: s.Path, Name: ref.String(), Revision: s.Commit, Bytes: s.Bytes, Digest: s.Digest}, nil
}

func (l *Library) listHub() ([]Pulled, error) {
	o, err := l.hubOptions()
	if err != nil || o.Cache == "" {
		return nil, err
	}
	snapshots, err := o.List()
	if err != nil {
		return nil, err
	}
	var list []Pulled
	for _, s := range snapshots {
		ref := Reference{Kind: Hub, Name: s.Repository, Variant: s.Variant}
		if !s.Main {
			ref.Revision = s.Commit
		}
		list = append(list, Pulled{Path: s.Path, Name: ref.String(), Revision: s.Commit, Bytes: s.Bytes, Digest: s.Digest})
	}
	return list, nil
}

func (l *Library) removeHub(ref Reference) error {
	o, err := l.hubOptions()
	if err != nil {
		return err
	}
	return o.Remove(ref.hubRequest())
}
