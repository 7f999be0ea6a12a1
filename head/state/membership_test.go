package state

import "testing"

// Membership changes one at a time; a stopped head stays a voter; a head that
// lost its disk takes the place of its old id; nobody votes before it caught up.
func TestNextMembership(t *testing.T) {
	voter := func(id string) Seat { return Seat{ID: id, Voter: true} }
	three := []Seat{voter("h-0-aa"), voter("h-1-bb"), voter("h-2-cc")}
	for name, c := range map[string]struct {
		seats   []Seat
		living  []string
		applied map[string]uint64
		want    Membership
	}{
		"all there":            {three, []string{"h-0-aa", "h-1-bb", "h-2-cc"}, nil, Membership{}},
		"one is away":          {three, []string{"h-0-aa", "h-1-bb"}, nil, Membership{}},
		"newcomer":             {three, []string{"h-0-aa", "h-3-dd"}, nil, Membership{Add: "h-3-dd"}},
		"lost its disk":        {three, []string{"h-0-aa", "h-1-bb", "h-2-ff"}, nil, Membership{Remove: "h-2-cc"}},
		"then it is added":     {three[:2], []string{"h-0-aa", "h-1-bb", "h-2-ff"}, nil, Membership{Add: "h-2-ff"}},
		"both ids live":        {three, []string{"h-0-aa", "h-1-bb", "h-2-cc", "h-2-ff"}, nil, Membership{Add: "h-2-ff"}},
		"the old id dies late": {append([]Seat{voter("h-2-ff")}, three...), []string{"h-0-aa", "h-1-bb", "h-2-ff"}, nil, Membership{Remove: "h-2-cc"}},
		"behind":               {append([]Seat{{ID: "h-3-dd"}}, three...), []string{"h-3-dd"}, map[string]uint64{"h-3-dd": 10}, Membership{}},
		"unknown progress":     {append([]Seat{{ID: "h-3-dd"}}, three...), []string{"h-3-dd"}, nil, Membership{}},
		"caught up":            {append([]Seat{{ID: "h-3-dd"}}, three...), []string{"h-3-dd"}, map[string]uint64{"h-3-dd": 95}, Membership{Promote: "h-3-dd"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := NextMembership(c.seats, c.living, c.applied, 100)
			if got != c.want || ok != (c.want != Membership{}) {
				t.Fatalf("%+v, %v; want %+v", got, ok, c.want)
			}
		})
	}
}
