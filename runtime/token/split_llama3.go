package token

// The split patterns of cl100k and its kin. Llama 3 takes up to three digits
// together, Qwen 2 and 3 take one; Qwen 3.5 counts marks among the letters.
const (
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen35Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// llama3Scanner splits as those patterns do.
type llama3Scanner struct {
	table  *classTable
	digits int
	word   class // letter, or letter|mark
}

func (l llama3Scanner) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	return splitAll(l, dst, text)
}

func (l llama3Scanner) next(text string) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	c, n := l.table.at(text, 0)
	if c&l.word != 0 {
		return l.table.run(text, n, l.word)
	}
	if c&(number|newline) == 0 && n < len(text) {
		if second, m := l.table.at(text, n); second&l.word != 0 {
			return l.table.run(text, n+m, l.word)
		}
	}
	return rest{l.table, l.digits, space | number | l.word, false}.next(text, c, n)
}

// rest is the end of those patterns, after the words:
// \p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
type rest struct {
	table  *classTable
	digits int
	stop   class // what ends a run of symbols
	slash  bool  // [\r\n/]* instead of [\r\n]*
}

// next gives the length of the first piece; c and n are the class and length of
// the first character.
func (r rest) next(text string, c class, n int) int {
	if c&number != 0 {
		end := n
		for k := 1; k < r.digits && end < len(text); k++ {
			d, m := r.table.at(text, end)
			if d&number == 0 {
				break
			}
			end += m
		}
		return end
	}
	if c&r.stop == 0 {
		return r.symbols(text, n)
	}
	if text[0] == ' ' && len(text) > 1 {
		if second, _ := r.table.at(text, 1); second&r.stop == 0 {
			return r.symbols(text, 1)
		}
	}
	return r.table.blank(text, true)
}

// symbols ends [^\s\p{L}\p{N}]+[\r\n]* from i on.
func (r rest) symbols(text string, i int) int {
	i = r.table.runWithout(text, i, r.stop)
	for i < len(text) && (text[i] == '\n' || text[i] == '\r' || r.slash && text[i] == '/') {
		i++
	}
	return i
}
