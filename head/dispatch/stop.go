package dispatch

import "strings"

// stopMatcher finds stop strings in a text that arrives in pieces, and holds
// back the end of the text for as long as a stop string may yet take it back.
//
// Invariant: held is a proper prefix of some stop string.
type stopMatcher struct {
	stops   []string
	include bool // the stop string itself belongs to the text
	held    string
}

// push takes the next piece. It gives the text that is safe to send and, if the
// piece completed a stop string, which one; what follows the stop is dropped.
// A piece that may not end the choice (min_tokens) can begin a stop, not end it.
func (m *stopMatcher) push(piece string, mayEnd bool) (text, stop string) {
	if len(m.stops) == 0 {
		return piece, ""
	}
	if piece == "" {
		return "", ""
	}
	before := len(m.held)
	all := m.held + piece
	if mayEnd {
		if start, stop := m.find(all, before); stop != "" {
			m.held = ""
			if m.include {
				start += len(stop)
			}
			return all[:start], stop
		}
	}
	keep := m.overlap(all)
	m.held = all[len(all)-keep:]
	return all[:len(all)-keep], ""
}

// flush gives what was held: the text is at its end and no stop came.
func (m *stopMatcher) flush() string {
	text := m.held
	m.held = ""
	return text
}

// find gives the first stop string that ends in text[before:]; of several that
// start together, the first in the client's order.
func (m *stopMatcher) find(text string, before int) (start int, stop string) {
	start = len(text)
	for _, candidate := range m.stops {
		from := max(0, before-len(candidate)+1)
		if at := strings.Index(text[from:], candidate); at >= 0 && from+at < start {
			start, stop = from+at, candidate
		}
	}
	return start, stop
}

// overlap is the length of the longest end of text that a stop string begins with.
func (m *stopMatcher) overlap(text string) int {
	longest := 0
	for _, stop := range m.stops {
		for n := min(len(stop)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				longest = n
				break
			}
		}
	}
	return longest
}
