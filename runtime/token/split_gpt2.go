package token

// gpt2Pattern is the split pattern of GPT-2's encoder.py.
const gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// gpt2Scanner splits as gpt2Pattern does.
type gpt2Scanner struct{ table *classTable }

func (g gpt2Scanner) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	return splitAll(g, dst, text)
}

func (g gpt2Scanner) next(text string) int {
	if n := contraction(text, false); n > 0 {
		return n
	}
	start := 0
	if text[0] == ' ' && len(text) > 1 {
		start = 1
	}
	c, n := g.table.at(text, start)
	switch {
	case c&letter != 0:
		return g.table.run(text, start+n, letter)
	case c&number != 0:
		return g.table.run(text, start+n, number)
	case c&space == 0:
		return g.table.runWithout(text, start+n, space|letter|number)
	}
	return g.table.blank(text, false)
}

// blank gives the length of the first piece of white space at the beginning of
// text, by \s+(?!\S)|\s+: all of it, but for the last character where something
// follows. With lines set, \s*[\r\n]+ comes first: up to the last line end.
func (t *classTable) blank(text string, lines bool) int {
	end, lastStart, lineEnd := 0, 0, 0
	for end < len(text) {
		c, n := t.at(text, end)
		if c&space == 0 {
			break
		}
		lastStart = end
		end += n
		if c&newline != 0 {
			lineEnd = end
		}
	}
	switch {
	case lines && lineEnd > 0:
		return lineEnd
	case end == len(text) || lastStart == 0:
		return end
	}
	return lastStart
}

// contraction gives the length of 's 't 're 've 'm 'll 'd at the beginning of
// text, or 0; fold: whatever their case, by Unicode's simple folding, where
// the long s (U+017F) is an s.
func contraction(text string, fold bool) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	char := func(i int) byte {
		if i >= len(text) {
			return 0
		}
		if c := text[i]; !fold || c < 'A' || c > 'Z' {
			return c
		}
		return text[i] + 'a' - 'A'
	}
	switch char(1) {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if char(2) == 'e' {
			return 3
		}
	case 'l':
		if char(2) == 'l' {
			return 3
		}
	case 0xc5:
		if fold && char(2) == 0xbf {
			return 3
		}
	}
	return 0
}
