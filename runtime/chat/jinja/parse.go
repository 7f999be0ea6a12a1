package jinja

import "strings"

// parser is jinja2/parser.py: recursive descent, one function a statement.
type parser struct {
	tokens  []token
	at      int
	nesting int
	tags    []string
	loops   int // for loops around the current statement, for break and continue
}

func (p *parser) current() token { return p.tokens[p.at] }

func (p *parser) look() token {
	return p.tokens[min(p.at+1, len(p.tokens)-1)]
}

func (p *parser) next() token {
	t := p.tokens[p.at]
	if p.at < len(p.tokens)-1 {
		p.at++
	}
	return t
}

func (p *parser) isOperator(text string) bool {
	t := p.current()
	return t.kind == tokenOperator && t.text == text
}

func (p *parser) isName(names ...string) bool {
	t := p.current()
	if t.kind != tokenName {
		return false
	}
	for _, name := range names {
		if t.text == name {
			return true
		}
	}
	return false
}

func (p *parser) skipOperator(text string) bool {
	if p.isOperator(text) {
		p.next()
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.isName(name) {
		p.next()
		return true
	}
	return false
}

func (p *parser) fail(line int, format string, args ...any) error {
	return atLine(raise("TemplateSyntaxError", format, args...), line)
}

func describe(t token) string {
	switch t.kind {
	case tokenEnd:
		return "end of template"
	case tokenData:
		return "template data / text"
	case tokenVariableBegin:
		return "begin of print statement"
	case tokenVariableEnd:
		return "end of print statement"
	case tokenBlockBegin:
		return "begin of statement block"
	case tokenBlockEnd:
		return "end of statement block"
	case tokenString:
		return "string"
	case tokenInteger:
		return "integer"
	case tokenFloat:
		return "float"
	}
	return t.text
}

func (p *parser) expectOperator(text string) error {
	if p.skipOperator(text) {
		return nil
	}
	t := p.current()
	if t.kind == tokenEnd {
		return p.fail(t.line, "unexpected end of template, expected '%s'.", text)
	}
	return p.fail(t.line, "expected token '%s', got %s", text, quote(describe(t)))
}

func (p *parser) expectKind(kind tokenKind) error {
	if t := p.current(); t.kind != kind {
		return p.fail(t.line, "expected token %s, got %s", quote(describe(token{kind: kind})), quote(describe(t)))
	}
	p.next()
	return nil
}

func (p *parser) expectName() (string, error) {
	t := p.current()
	if t.kind != tokenName {
		return "", p.fail(t.line, "expected token 'name', got %s", quote(describe(t)))
	}
	p.next()
	return t.text, nil
}

// enter counts nesting, so that no source can overflow the stack.
func (p *parser) enter() error {
	p.nesting++
	if p.nesting > maxNesting {
		return p.fail(p.current().line, "nested deeper than %d", maxNesting)
	}
	return nil
}

func (p *parser) leave() { p.nesting-- }

// link counts the operators, filters or subscripts of one chain, which nest in
// the tree though not in the source.
func (p *parser) link(length *int) error {
	*length++
	if *length > maxChain {
		return p.fail(p.current().line, "more than %d operators in one chain", maxChain)
	}
	return nil
}

func (p *parser) parseTemplate() ([]statement, error) {
	body, err := p.parseBody(nil)
	if err != nil {
		return nil, err
	}
	return body, nil
}

// parseBody reads statements until a tag of one of the names, which stays
// current, or to the end of the template when ends is nil.
func (p *parser) parseBody(ends []string) ([]statement, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	var body []statement
	for {
		t := p.current()
		switch t.kind {
		case tokenEnd:
			if ends != nil {
				return nil, p.fail(t.line, "Unexpected end of template.%s", p.lookingFor(ends))
			}
			return body, nil
		case tokenData:
			p.next()
			body = append(body, data{text: t.text})
		case tokenVariableBegin:
			p.next()
			value, err := p.parseTuple(tupleOptions{conditional: true})
			if err != nil {
				return nil, err
			}
			if err := p.expectKind(tokenVariableEnd); err != nil {
				return nil, err
			}
			body = append(body, output{value: value, line: t.line})
		default: // tokenBlockBegin: the lexer leaves nothing else between tags
			p.next()
			if ends != nil && p.isName(ends...) {
				return body, nil
			}
			s, err := p.parseStatement(ends)
			if err != nil {
				return nil, err
			}
			body = append(body, s...)
			if err := p.expectKind(tokenBlockEnd); err != nil {
				return nil, err
			}
		}
	}
}

// parseBlock reads the rest of an opening tag and the body up to the end tag,
// which it leaves behind only when drop is set.
func (p *parser) parseBlock(drop bool, ends ...string) ([]statement, error) {
	p.skipOperator(":")
	if err := p.expectKind(tokenBlockEnd); err != nil {
		return nil, err
	}
	body, err := p.parseBody(ends)
	if err == nil && drop {
		p.next()
	}
	return body, err
}

func one(s statement, err error) ([]statement, error) {
	if err != nil {
		return nil, err
	}
	return []statement{s}, nil
}

func (p *parser) parseStatement(ends []string) ([]statement, error) {
	t := p.current()
	if t.kind != tokenName {
		return nil, p.fail(t.line, "tag name expected")
	}
	p.next()
	p.tags = append(p.tags, t.text)
	depth := len(p.tags)
	defer func() { p.tags = p.tags[:min(depth-1, len(p.tags))] }()
	switch t.text {
	case "for":
		return one(p.parseFor(t.line))
	case "if":
		return one(p.parseIf())
	case "set":
		return one(p.parseSet(t.line))
	case "macro":
		return one(p.parseMacro(t.line))
	case "call":
		return one(p.parseCallBlock(t.line))
	case "filter":
		return one(p.parseFilterBlock(t.line))
	case "with":
		return one(p.parseWith(t.line))
	case "block":
		return one(p.parseNamedBlock(t.line))
	case "print":
		return p.parsePrint(t.line)
	case "generation":
		node := callBlock{body: &macro{name: "caller", line: t.line}, line: t.line}
		return one(node, p.parseMacroBody(node.body, "endgeneration"))
	case "break", "continue":
		if p.loops == 0 {
			return nil, atLine(raise("SyntaxError", "'%s' outside loop", t.text), t.line)
		}
		return []statement{loopControl{leave: t.text == "break", line: t.line}}, nil
	case "extends", "include", "import", "from":
		return one(p.parseLoad(t))
	case "autoescape":
		return one(p.parseAutoescape(t.line))
	}
	p.tags = p.tags[:len(p.tags)-1]
	return nil, p.fail(t.line, "Encountered unknown tag %s.%s", quote(t.text), p.lookingFor(ends))
}

// lookingFor says which tags would have fit.
func (p *parser) lookingFor(ends []string) string {
	message := ""
	if ends != nil {
		message = " Jinja was looking for the following tags: '" + strings.Join(ends, "' or '") + "'."
	}
	if len(p.tags) > 0 {
		message += " The innermost block that needs to be closed is " + quote(p.tags[len(p.tags)-1]) + "."
	}
	return message
}

// parseAutoescape takes the tag only where it changes nothing.
func (p *parser) parseAutoescape(line int) (statement, error) {
	value, err := p.parseExpression()
	if err != nil {
		return nil, err
	}
	if value != (constant{value: false}) {
		return nil, p.fail(line, "autoescape is not supported but for false: a prompt is not HTML")
	}
	body, err := p.parseBlock(true, "endautoescape")
	return &with{body: body, line: line}, err
}

func (p *parser) parseFor(line int) (statement, error) {
	node := &forLoop{line: line}
	var err error
	if node.target, err = p.parseTarget(false, "in"); err != nil {
		return nil, err
	}
	if !p.skipName("in") {
		return nil, p.fail(p.current().line, "expected token 'in', got %s", quote(describe(p.current())))
	}
	if node.iterable, err = p.parseTuple(tupleOptions{end: "recursive"}); err != nil {
		return nil, err
	}
	if p.skipName("if") {
		if node.filter, err = p.parseExpression(); err != nil {
			return nil, err
		}
	}
	node.recursive = p.skipName("recursive")
	p.loops++
	node.body, err = p.parseBlock(false, "endfor", "else")
	p.loops--
	if err != nil {
		return nil, err
	}
	if p.next().text == "else" {
		node.otherwise, err = p.parseBlock(true, "endfor")
	}
	return node, err
}

func (p *parser) parseIf() (statement, error) {
	node := &conditionalBlock{}
	for {
		line := p.current().line
		test, err := p.parseTuple(tupleOptions{})
		if err != nil {
			return nil, err
		}
		body, err := p.parseBlock(false, "elif", "else", "endif")
		if err != nil {
			return nil, err
		}
		node.branches = append(node.branches, branch{test: test, body: body, line: line})
		switch p.next().text {
		case "elif":
			continue
		case "else":
			node.otherwise, err = p.parseBlock(true, "endif")
		}
		return node, err
	}
}

func (p *parser) parseSet(line int) (statement, error) {
	to, err := p.parseTarget(true, "")
	if err != nil {
		return nil, err
	}
	if p.skipOperator("=") {
		value, err := p.parseTuple(tupleOptions{conditional: true})
		return assign{target: to, value: value, line: line}, err
	}
	node := &assignBlock{target: to, line: line}
	if p.isOperator("|") {
		filtered, err := p.parseFilters(nil, false)
		if err != nil {
			return nil, err
		}
		node.filter, _ = filtered.(*filterCall)
	}
	node.body, err = p.parseBlock(true, "endset")
	return node, err
}

// parseParameters reads what a macro or a call block takes.
func (p *parser) parseParameters(node *macro) error {
	if err := p.expectOperator("("); err != nil {
		return err
	}
	defaults := false
	for !p.isOperator(")") {
		if len(node.parameters) > 0 {
			if err := p.expectOperator(","); err != nil {
				return err
			}
		}
		line := p.current().line
		name, err := p.parseNameTarget()
		if err != nil {
			return err
		}
		parameter := parameter{name: name}
		if p.skipOperator("=") {
			defaults = true
			if parameter.defaultValue, err = p.parseExpression(); err != nil {
				return err
			}
		} else if defaults {
			return p.fail(line, "non-default argument follows default argument")
		}
		for _, other := range node.parameters {
			if other.name == name {
				return atLine(raise("SyntaxError", "duplicate argument %s in macro definition", quote(name)), line)
			}
		}
		node.parameters = append(node.parameters, parameter)
	}
	p.next()
	return nil
}

// parseMacroBody reads the body outside of any loop around: break and continue
// don't reach through a macro.
func (p *parser) parseMacroBody(node *macro, end string) (err error) {
	loops := p.loops
	p.loops = 0
	node.body, err = p.parseBlock(true, end)
	p.loops = loops
	return err
}

func (p *parser) parseMacro(line int) (statement, error) {
	node := &macro{line: line}
	var err error
	if node.name, err = p.parseNameTarget(); err != nil {
		return nil, err
	}
	if err := p.parseParameters(node); err != nil {
		return nil, err
	}
	return node, p.parseMacroBody(node, "endmacro")
}

func (p *parser) parseCallBlock(line int) (statement, error) {
	node := callBlock{body: &macro{name: "caller", line: line}, line: line}
	if p.isOperator("(") {
		if err := p.parseParameters(node.body); err != nil {
			return nil, err
		}
	}
	callee, err := p.parseExpression()
	if err != nil {
		return nil, err
	}
	called, ok := callee.(*call)
	if !ok {
		return nil, p.fail(line, "expected call")
	}
	node.call = called
	return node, p.parseMacroBody(node.body, "endcall")
}

func (p *parser) parseFilterBlock(line int) (statement, error) {
	filtered, err := p.parseFilters(nil, true)
	if err != nil {
		return nil, err
	}
	body, err := p.parseBlock(true, "endfilter")
	filter, _ := filtered.(*filterCall)
	return &filterBlock{filter: filter, body: body, line: line}, err
}

func (p *parser) parseWith(line int) (statement, error) {
	node := &with{line: line}
	for p.current().kind != tokenBlockEnd {
		if len(node.targets) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
		}
		to, err := p.parseTarget(false, "")
		if err != nil {
			return nil, err
		}
		if err := p.expectOperator("="); err != nil {
			return nil, err
		}
		value, err := p.parseExpression()
		if err != nil {
			return nil, err
		}
		node.targets = append(node.targets, to)
		node.values = append(node.values, value)
	}
	var err error
	node.body, err = p.parseBlock(true, "endwith")
	return node, err
}

func (p *parser) parseNamedBlock(line int) (statement, error) {
	node := &block{line: line}
	var err error
	if node.name, err = p.expectName(); err != nil {
		return nil, err
	}
	node.scoped = p.skipName("scoped")
	p.skipName("required")
	loops := p.loops
	p.loops = 0
	node.body, err = p.parseBlock(true, "endblock")
	p.loops = loops
	p.skipName(node.name)
	return node, err
}

func (p *parser) parsePrint(line int) ([]statement, error) {
	var body []statement
	for p.current().kind != tokenBlockEnd {
		if len(body) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
		}
		value, err := p.parseExpression()
		if err != nil {
			return nil, err
		}
		body = append(body, output{value: value, line: line})
	}
	return body, nil
}

// parseLoad reads past a tag that would need a loader. As in transformers,
// there is none: it fails when it is reached.
func (p *parser) parseLoad(t token) (statement, error) {
	if _, err := p.parseExpression(); err != nil {
		return nil, err
	}
	for p.current().kind != tokenBlockEnd && p.current().kind != tokenEnd {
		p.next()
	}
	return load{tag: t.text, line: t.line}, nil
}

func (p *parser) parseNameTarget() (string, error) {
	line := p.current().line
	name, err := p.expectName()
	if err != nil {
		return "", err
	}
	return name, p.assignable(name, line)
}

func (p *parser) assignable(name string, line int) error {
	switch name {
	case "true", "false", "none", "True", "False", "None":
		return p.fail(line, "can't assign to 'name'")
	}
	return nil
}

// parseTarget reads the left side of an assignment. fields allows ns.name.
func (p *parser) parseTarget(fields bool, end string) (target, error) {
	line := p.current().line
	e, err := p.parseTuple(tupleOptions{simple: true, fields: fields, end: end})
	if err != nil {
		return nil, err
	}
	return p.toTarget(e, line)
}

func (p *parser) toTarget(e expression, line int) (target, error) {
	switch e := e.(type) {
	case name:
		return targetName(e), p.assignable(e.name, line)
	case targetField:
		return e, nil
	case tuple:
		items := make([]target, len(e.items))
		for i, item := range e.items {
			var err error
			if items[i], err = p.toTarget(item, line); err != nil {
				return nil, err
			}
		}
		return targetTuple{items: items}, nil
	case constant:
		return nil, p.fail(line, "can't assign to 'const'")
	}
	return nil, p.fail(line, "can't assign to this expression")
}
