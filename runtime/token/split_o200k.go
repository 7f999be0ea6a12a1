package token

// o200kPattern is the split pattern of o200k (gpt-oss).
const o200kPattern = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|` +
	`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|` +
	`\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// o200kScanner splits as o200kPattern does; tekken (Mistral) has one digit and
// no contractions.
type o200kScanner struct {
	table       *classTable
	digits      int
	contraction bool
}

// tekkenPattern is that of Mistral's tekken vocabularies.
const tekkenPattern = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|` +
	`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|` +
	`\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`

func (o o200kScanner) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	return splitAll(o, dst, text)
}

func (o o200kScanner) next(text string) int {
	c, n := o.table.at(text, 0)
	if end := o.word(text, c, n); end > 0 {
		if o.contraction {
			end += contraction(text[end:], true)
		}
		return end
	}
	return rest{o.table, o.digits, space | letter | number, true}.next(text, c, n)
}

// word tries the pattern's first two alternatives, each first with the
// character before the word and then without, as a backtracking engine does.
func (o o200kScanner) word(text string, c class, n int) int {
	prefix := c&(letter|number|newline) == 0 && n < len(text)
	bare := c&(letter|mark) != 0
	if prefix {
		if end := o.endingLower(text, n); end > 0 {
			return end
		}
	}
	if bare {
		if end := o.endingLower(text, 0); end > 0 {
			return end
		}
	}
	// What does not end lower is upper throughout.
	if prefix {
		if end := o.table.run(text, n, upper|caseless); end > n {
			return end
		}
	}
	if bare {
		return o.table.run(text, 0, upper|caseless)
	}
	return 0
}

// endingLower ends [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
// from i on, or gives 0. The first set takes all it can; where nothing of the
// second follows, it gives back its last caseless character.
func (o o200kScanner) endingLower(text string, i int) int {
	back := 0
	for i < len(text) {
		c, n := o.table.at(text, i)
		if c&(upper|caseless) == 0 {
			break
		}
		i += n
		if c&caseless != 0 {
			back = i
		}
	}
	if end := o.table.run(text, i, lower|caseless); end > i {
		return end
	}
	return back
}
