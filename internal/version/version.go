// Package version tells which build of Manta runs. It is read by the command
// line, the API and gossip, and decides nothing: protocols carry versions of
// their own.
package version

import (
	"runtime/debug"
	"strings"
)

// Release is the version that the source stands for.
const Release = "0.1.0"

// String gives the release and, when the build knows it, the commit.
func String() string {
	commit, dirty := commit()
	if commit == "" {
		return Release
	}
	return Release + "+" + commit + dirty
}

func commit() (revision, dirty string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", ""
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			revision = strings.ToLower(setting.Value)
		case "vcs.modified":
			if setting.Value == "true" {
				dirty = ".dirty"
			}
		}
	}
	return revision[:min(len(revision), 12)], dirty
}
