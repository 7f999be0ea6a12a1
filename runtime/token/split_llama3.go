package token

// The split patterns of cl100k and its kin. Llama 3 takes up to three digits
// together, Qwen 2 and 3 take one.
const (
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// llama3Scanner splits as those patterns do.
type llama3Scanner struct {
	table  *classTable
	digits int
}

func (l llama3Scanner) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	return splitAll(l, dst, text)
}

func (l llama3Scanner) next(text string) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	c, n := l.table.at(text, 0)
	if c&letter != 0 {
		return l.table.run(text, n, letter)
	}
	if c&(number|newline) == 0 && n < len(text) {
		if second, m := l.table.at(text, n); second&letter != 0 {
			return l.table.run(text, n+m, letter)
		}
	}
	return l.table.rest(text, c, n, l.digits, false)
}

// rest gives the length of the first piece of a text that does not begin with
// a word, by \p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// with slash: [\r\n/]* instead of [\r\n]*. c and n are the class and length of
// the first character.
func (t *classTable) rest(text string, c class, n, digits int, slash bool) int {
	if c&number != 0 {
		end := n
		for k := 1; k < digits && end < len(text); k++ {
			d, m := t.at(text, end)
			if d&number == 0 {
				break
			}
			end += m
		}
		return end
	}
	if c&(space|letter) == 0 {
		return t.symbols(text, n, slash)
	}
	if text[0] == ' ' && len(text) > 1 {
		if second, _ := t.at(text, 1); second&(space|letter|number) == 0 {
			return t.symbols(text, 1, slash)
		}
	}
	return t.blank(text, true)
}

// symbols ends [^\s\p{L}\p{N}]+[\r\n]* from i on.
func (t *classTable) symbols(text string, i int, slash bool) int {
	i = t.runWithout(text, i, space|letter|number)
	for i < len(text) && (text[i] == '\n' || text[i] == '\r' || slash && text[i] == '/') {
		i++
	}
	return i
}
