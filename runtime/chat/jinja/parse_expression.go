package jinja

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// tupleOptions are the arguments of jinja2's parse_tuple.
type tupleOptions struct {
	simple      bool   // names and literals alone, as in an assignment's target
	fields      bool   // ns.name is a target
	conditional bool   // "a if b else c" is allowed without brackets
	bracketed   bool   // () is an empty tuple
	end         string // a name that ends the tuple
}

func (p *parser) parseTuple(options tupleOptions) (expression, error) {
	var items []expression
	isTuple := false
	for {
		if len(items) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
		}
		kind := p.current().kind
		if kind == tokenVariableEnd || kind == tokenBlockEnd || p.isOperator(")") || options.end != "" && p.isName(options.end) {
			break
		}
		item, err := p.parseTupleItem(options)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		if !p.isOperator(",") {
			break
		}
		isTuple = true
	}
	if !isTuple {
		if len(items) > 0 {
			return items[0], nil
		}
		if !options.bracketed {
			t := p.current()
			return nil, p.fail(t.line, "Expected an expression, got %s", quote(describe(t)))
		}
	}
	return tuple{items: items}, nil
}

func (p *parser) parseTupleItem(options tupleOptions) (expression, error) {
	switch {
	case options.simple:
		return p.parsePrimary(options.fields)
	case options.conditional || options.bracketed:
		return p.parseExpression()
	}
	return p.parseOr()
}

func (p *parser) parseExpression() (expression, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	line := p.current().line
	e, err := p.parseOr()
	for length := 0; err == nil && p.skipName("if"); err = firstError(err, p.link(&length)) {
		node := conditional{then: e, line: line}
		if node.test, err = p.parseOr(); err != nil {
			return nil, err
		}
		if p.skipName("else") {
			if node.otherwise, err = p.parseExpression(); err != nil {
				return nil, err
			}
		}
		e = node
	}
	return e, err
}

func (p *parser) parseOr() (expression, error) {
	left, err := p.parseAnd()
	for length := 0; err == nil && p.skipName("or"); err = firstError(err, p.link(&length)) {
		var right expression
		right, err = p.parseAnd()
		left = logical{left: left, right: right}
	}
	return left, err
}

func (p *parser) parseAnd() (expression, error) {
	left, err := p.parseNot()
	for length := 0; err == nil && p.skipName("and"); err = firstError(err, p.link(&length)) {
		var right expression
		right, err = p.parseNot()
		left = logical{and: true, left: left, right: right}
	}
	return left, err
}

func (p *parser) parseNot() (expression, error) {
	if !p.skipName("not") {
		return p.parseCompare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	operand, err := p.parseNot()
	return not{operand: operand}, err
}

func (p *parser) comparisonOperator() string {
	t := p.current()
	if t.kind == tokenOperator {
		switch t.text {
		case "==", "!=", "<", "<=", ">", ">=":
			p.next()
			return t.text
		}
		return ""
	}
	if p.skipName("in") {
		return "in"
	}
	if next := p.look(); p.isName("not") && next.kind == tokenName && next.text == "in" {
		p.next()
		p.next()
		return "not in"
	}
	return ""
}

func (p *parser) parseCompare() (expression, error) {
	first, err := p.parseSum()
	if err != nil {
		return nil, err
	}
	var rest []comparison
	for operator := p.comparisonOperator(); operator != ""; operator = p.comparisonOperator() {
		operand, err := p.parseSum()
		if err != nil {
			return nil, err
		}
		rest = append(rest, comparison{operator: operator, operand: operand})
	}
	if rest == nil {
		return first, nil
	}
	return compare{first: first, rest: rest}, nil
}

// parseBinary reads left-associative operators of one precedence.
func (p *parser) parseBinary(operand func() (expression, error), operators ...string) (expression, error) {
	left, err := operand()
	for length := 0; err == nil; err = firstError(err, p.link(&length)) {
		operator := ""
		for _, candidate := range operators {
			if p.skipOperator(candidate) {
				operator = candidate
				break
			}
		}
		if operator == "" {
			break
		}
		var right expression
		right, err = operand()
		left = binary{operator: operator, left: left, right: right}
	}
	return left, err
}

func (p *parser) parseSum() (expression, error) { return p.parseBinary(p.parseConcat, "+", "-") }

func (p *parser) parseConcat() (expression, error) {
	first, err := p.parseProduct()
	if err != nil || !p.isOperator("~") {
		return first, err
	}
	parts := []expression{first}
	for p.skipOperator("~") {
		part, err := p.parseProduct()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return concat{parts: parts}, nil
}

func (p *parser) parseProduct() (expression, error) {
	return p.parseBinary(p.parsePower, "*", "/", "//", "%")
}

func (p *parser) parsePower() (expression, error) {
	return p.parseBinary(func() (expression, error) { return p.parseUnary(true) }, "**")
}

func (p *parser) parseUnary(filters bool) (expression, error) {
	var node expression
	var err error
	if t := p.current(); t.kind == tokenOperator && (t.text == "-" || t.text == "+") {
		p.next()
		if err := p.enter(); err != nil {
			return nil, err
		}
		var operand expression
		operand, err = p.parseUnary(false)
		p.leave()
		node = unary{operator: t.text, operand: operand}
	} else {
		node, err = p.parsePrimary(false)
	}
	if err != nil {
		return nil, err
	}
	if node, err = p.parsePostfix(node); err != nil || !filters {
		return node, err
	}
	return p.parseFilterExpression(node)
}

// parsePrimary reads a name, a literal or a bracket. fields reads ns.name as a
// target.
func (p *parser) parsePrimary(fields bool) (expression, error) {
	t := p.current()
	switch t.kind {
	case tokenName:
		p.next()
		switch t.text {
		case "true", "True":
			return constant{value: true}, nil
		case "false", "False":
			return constant{value: false}, nil
		case "none", "None":
			return constant{value: nil}, nil
		}
		if fields && p.skipOperator(".") {
			field, err := p.expectName()
			return targetField{namespace: t.text, field: field}, err
		}
		return name{name: t.text}, nil
	case tokenString:
		text := ""
		for p.current().kind == tokenString {
			text += p.next().text
		}
		return constant{value: text}, nil
	case tokenInteger, tokenFloat:
		p.next()
		return constant{value: t.value}, nil
	case tokenOperator:
		if err := p.enter(); err != nil {
			return nil, err
		}
		defer p.leave()
		switch t.text {
		case "(":
			p.next()
			e, err := p.parseTuple(tupleOptions{conditional: true, bracketed: true})
			if err != nil {
				return nil, err
			}
			return e, p.expectOperator(")")
		case "[":
			p.next()
			return p.parseListDisplay()
		case "{":
			p.next()
			return p.parseDictDisplay()
		}
	}
	return nil, p.fail(t.line, "unexpected %s", quote(describe(t)))
}

func (p *parser) parseListDisplay() (expression, error) {
	var items []expression
	for !p.isOperator("]") {
		if len(items) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
			if p.isOperator("]") {
				break
			}
		}
		item, err := p.parseExpression()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return list{items: items}, p.expectOperator("]")
}

func (p *parser) parseDictDisplay() (expression, error) {
	var pairs []pair
	for !p.isOperator("}") {
		if len(pairs) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
			if p.isOperator("}") {
				break
			}
		}
		key, err := p.parseExpression()
		if err != nil {
			return nil, err
		}
		if err := p.expectOperator(":"); err != nil {
			return nil, err
		}
		value, err := p.parseExpression()
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, pair{key: key, value: value})
	}
	return dict{pairs: pairs}, p.expectOperator("}")
}

func (p *parser) parsePostfix(node expression) (expression, error) {
	var err error
	for length := 0; err == nil; err = firstError(err, p.link(&length)) {
		switch {
		case p.isOperator(".") || p.isOperator("["):
			node, err = p.parseSubscript(node)
		case p.isOperator("("):
			node, err = p.parseCall(node)
		default:
			return node, nil
		}
	}
	return nil, err
}

func (p *parser) parseFilterExpression(node expression) (expression, error) {
	var err error
	for length := 0; err == nil; err = firstError(err, p.link(&length)) {
		switch {
		case p.isOperator("|"):
			node, err = p.parseFilters(node, false)
		case p.isName("is"):
			node, err = p.parseTest(node)
		case p.isOperator("("):
			node, err = p.parseCall(node)
		default:
			return node, nil
		}
	}
	return nil, err
}

func (p *parser) parseSubscript(node expression) (expression, error) {
	if p.next().text == "." {
		t := p.next()
		switch t.kind {
		case tokenName:
			return attribute{object: node, name: t.text}, nil
		case tokenInteger:
			return index{object: node, key: constant{value: t.value}}, nil
		}
		return nil, p.fail(t.line, "expected name or number")
	}
	var keys []expression
	for !p.isOperator("]") {
		if len(keys) > 0 {
			if err := p.expectOperator(","); err != nil {
				return nil, err
			}
		}
		key, err := p.parseSubscribed()
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	p.next()
	if len(keys) == 1 {
		return index{object: node, key: keys[0]}, nil
	}
	return index{object: node, key: tuple{items: keys}}, nil
}

func (p *parser) parseSubscribed() (expression, error) {
	var node slice
	var err error
	if !p.isOperator(":") {
		if node.start, err = p.parseExpression(); err != nil || !p.isOperator(":") {
			return node.start, err
		}
	}
	p.next()
	ended := func() bool { return p.isOperator("]") || p.isOperator(",") }
	if !p.isOperator(":") && !ended() {
		if node.stop, err = p.parseExpression(); err != nil {
			return nil, err
		}
	}
	if p.skipOperator(":") && !ended() {
		if node.step, err = p.parseExpression(); err != nil {
			return nil, err
		}
	}
	return node, nil
}

func (p *parser) parseCall(node expression) (expression, error) {
	arguments, err := p.parseArguments()
	return &call{callee: node, arguments: arguments}, err
}

func (p *parser) parseArguments() (argumentList, error) {
	var a argumentList
	line := p.current().line
	if err := p.expectOperator("("); err != nil {
		return a, err
	}
	for first := true; !p.isOperator(")"); first = false {
		if !first {
			if err := p.expectOperator(","); err != nil {
				return a, err
			}
			if p.isOperator(")") {
				break
			}
		}
		if err := p.parseArgument(&a, line); err != nil {
			return a, err
		}
	}
	p.next()
	return a, nil
}

func (p *parser) parseArgument(a *argumentList, line int) (err error) {
	invalid := p.fail(line, "invalid syntax for function call expression")
	switch next := p.look(); {
	case p.skipOperator("*"):
		if a.spread != nil || a.spreadKeywords != nil {
			return invalid
		}
		a.spread, err = p.parseExpression()
	case p.skipOperator("**"):
		if a.spreadKeywords != nil {
			return invalid
		}
		a.spreadKeywords, err = p.parseExpression()
	case p.current().kind == tokenName && next.kind == tokenOperator && next.text == "=":
		if a.spreadKeywords != nil {
			return invalid
		}
		keyword := keywordArgument{name: p.next().text}
		p.next()
		keyword.value, err = p.parseExpression()
		a.keywords = append(a.keywords, keyword)
	default:
		if a.spread != nil || a.spreadKeywords != nil || a.keywords != nil {
			return invalid
		}
		var value expression
		value, err = p.parseExpression()
		a.positional = append(a.positional, value)
	}
	return err
}

func (p *parser) parseDottedName() (string, error) {
	full, err := p.expectName()
	for err == nil && p.skipOperator(".") {
		var part string
		part, err = p.expectName()
		full += "." + part
	}
	return full, err
}

// parseFilters reads "|name(args)" as often as it comes. inline: the first has
// no bar, as in a filter block.
func (p *parser) parseFilters(node expression, inline bool) (expression, error) {
	for length := 0; inline || p.isOperator("|"); {
		if err := p.link(&length); err != nil {
			return nil, err
		}
		if !inline {
			p.next()
		}
		inline = false
		filter := &filterCall{input: node, line: p.current().line}
		var err error
		if filter.name, err = p.parseDottedName(); err != nil {
			return nil, err
		}
		if p.isOperator("(") {
			if filter.arguments, err = p.parseArguments(); err != nil {
				return nil, err
			}
		}
		node = filter
	}
	return node, nil
}

func (p *parser) parseTest(node expression) (expression, error) {
	test := &testCall{input: node, line: p.next().line}
	negated := p.skipName("not")
	var err error
	if test.name, err = p.parseDottedName(); err != nil {
		return nil, err
	}
	switch t := p.current(); {
	case p.isOperator("("):
		test.arguments, err = p.parseArguments()
	case p.isName("else", "or", "and"):
	case p.isName("is"):
		return nil, p.fail(t.line, "You cannot chain multiple tests with is")
	case t.kind == tokenName, t.kind == tokenString, t.kind == tokenInteger, t.kind == tokenFloat,
		p.isOperator("["), p.isOperator("{"):
		var argument expression
		if argument, err = p.parsePrimary(false); err == nil {
			argument, err = p.parsePostfix(argument)
		}
		test.arguments.positional = []expression{argument}
	}
	if negated {
		return not{operand: test}, err
	}
	return test, err
}
