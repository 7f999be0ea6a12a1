package state

import (
	"maps"
	"slices"
	"testing"
)

// What is answered so far stays in the store while its job runs. Once the job is over
// it stays as long as the files made of it: who deletes those gets the room back.
func TestResultsAreTheirFiles(t *testing.T) {
	answers, errors, log := []Part{{Digest: Digest{1}}}, []Part{{Digest: Digest{2}}}, []Part{{Digest: Digest{3}}}
	so := func(status JobStatus, answersFile, errorsFile string, files ...File) Command {
		return command(Change{ReportJob: &JobReport{
			ID: "b", Claim: 11, Status: status, Log: log, Files: files,
			Batch: &BatchJob{Answers: answers, Errors: errors, AnswersFile: answersFile, ErrorsFile: errorsFile},
		}})
	}
	begun := []Command{command(job("b", 1)), command(claim("b", 0))}
	running := so(Running, "", "")
	over := so(Succeeded, "file-a", "file-e", File{ID: "file-a", Parts: answers}, File{ID: "file-e", Parts: errors})
	without := func(file string) Command { return command(Change{DeleteFile: file}) }
	for name, c := range map[string]struct {
		commands []Command
		want     []byte // the digests that are needed
	}{
		"running":         {[]Command{running}, []byte{1, 2, 3}},
		"over":            {[]Command{running, over}, []byte{1, 2, 3}},
		"answers deleted": {[]Command{running, over, without("file-a")}, []byte{2, 3}},
		"both deleted":    {[]Command{running, over, without("file-a"), without("file-e")}, []byte{3}},
		"the job deleted": {[]Command{running, over, command(Change{DeleteJob: "b"})}, []byte{1, 2}},
	} {
		v, err := apply(t, slices.Concat(begun, c.commands)...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		needed := map[byte]bool{}
		v.Referenced(func(d Digest) { needed[d[0]] = true })
		if got := slices.Sorted(maps.Keys(needed)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v are needed, want %v", name, got, c.want)
		}
	}
}
