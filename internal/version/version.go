// Package version tells which build of Manta runs. It is read by the command
// line, the API and gossip, and decides nothing: protocols carry versions of
// their own.
package version

import "runtime/debug"

// Version is set by the linker (make build); a plain go build leaves it empty.
var Version string

// String gives the linker's version, or the commit that the build knows.
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	var revision, dirty string
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			revision = setting.Value[:min(len(setting.Value), 12)]
		case "vcs.modified":
			if setting.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if revision == "" {
		return "unknown"
	}
	return revision + dirty
}
