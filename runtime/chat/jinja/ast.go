package jinja

// An expression has a value; the evaluator switches on its type.
type expression interface{}

type (
	constant struct{ value Value }
	name     struct{ name string }
	tuple    struct{ items []expression }
	list     struct{ items []expression }
	pair     struct{ key, value expression }
	dict     struct{ pairs []pair }
	unary    struct {
		operator string // "-" or "+"
		operand  expression
	}
	binary struct {
		operator    string
		left, right expression
	}
	not     struct{ operand expression }
	logical struct {
		and         bool
		left, right expression
	}
	comparison struct {
		operator string // "==" ... "in", "not in"
		operand  expression
	}
	compare struct {
		first expression
		rest  []comparison
	}
	concat      struct{ parts []expression }
	conditional struct {
		test, then, otherwise expression // otherwise may be nil
		line                  int
	}
	attribute struct {
		object expression
		name   string
	}
	index struct{ object, key expression }
	slice struct{ start, stop, step expression } // each may be nil
	call  struct {
		callee    expression
		arguments argumentList
	}
	filterCall struct {
		input     expression // nil at the head of a filter block
		name      string
		arguments argumentList
		line      int
	}
	testCall struct {
		input     expression
		name      string
		arguments argumentList
		line      int
	}
)

type keywordArgument struct {
	name  string
	value expression
}

type argumentList struct {
	positional     []expression
	keywords       []keywordArgument
	spread         expression // *args, or nil
	spreadKeywords expression // **kwargs, or nil
}

// A statement writes output or changes its scope.
type statement interface{}

// A target is what an assignment writes to: targetName, targetField or
// targetTuple.
type target interface{}

type (
	targetName  struct{ name string }
	targetField struct{ namespace, field string }
	targetTuple struct{ items []target }
)

type (
	data   struct{ text string }
	output struct {
		value expression
		line  int
	}
	assign struct {
		target target
		value  expression
		line   int
	}
	assignBlock struct {
		target target
		filter *filterCall // nil without one
		body   []statement
		line   int
		unset  []string
	}
	branch struct {
		test expression
		body []statement
		line int
	}
	conditionalBlock struct {
		branches  []branch
		otherwise []statement
	}
	forLoop struct {
		target    target
		iterable  expression
		filter    expression // nil without one
		recursive bool
		body      []statement
		otherwise []statement
		line      int
		// names that are undefined when the body begins; see symbols
		unset, otherwiseUnset []string
	}
	parameter struct {
		name         string
		defaultValue expression // nil without one
	}
	macro struct {
		name                       string
		parameters                 []parameter
		body                       []statement
		usesCaller                 bool
		usesKeywords, usesVariadic bool
		unset                      []string
		line                       int
	}
	callBlock struct {
		call *call // nil for a generation tag, which prints its body
		body *macro
		line int
	}
	filterBlock struct {
		filter *filterCall
		body   []statement
		line   int
		unset  []string
	}
	with struct {
		targets []target
		values  []expression
		body    []statement
		line    int
		unset   []string
	}
	block struct {
		name   string
		scoped bool
		body   []statement
		line   int
		unset  []string
	}
	loopControl struct {
		leave bool // break, else continue
		line  int
	}
	load struct { // extends, include, import and from: there is no loader
		tag  string
		line int
	}
)
