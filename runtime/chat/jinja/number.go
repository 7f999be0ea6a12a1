package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// maxIntegerBits bounds what ** and * may make.
const maxIntegerBits = 1 << 16

// arithmetic is Python's binary operator on two values.
func (m *machine) arithmetic(operator string, a, b Value) (Value, error) {
	for _, v := range []Value{a, b} {
		if u, ok := v.(*undefined); ok {
			// str and Markup decide before Undefined's own method is asked.
			_, isText := text(a)
			if operator == "%" && isText {
				break
			}
			return nil, u.fail()
		}
	}
	if isNumber(a) && isNumber(b) {
		return numeric(operator, a, b)
	}
	switch operator {
	case "+":
		return m.add(a, b)
	case "*":
		if n, ok := integer(b); ok && isSequenceType(a) {
			return m.repeat(a, n)
		}
		if n, ok := integer(a); ok && isSequenceType(b) {
			return m.repeat(b, n)
		}
	case "%":
		if format, ok := text(a); ok {
			return m.formatPercent(format, b)
		}
	}
	if operator == "*" {
		for _, pair := range [][2]Value{{a, b}, {b, a}} {
			if isSequenceType(pair[0]) {
				return nil, typeError("can't multiply sequence by non-int of type '%s'", typeName(pair[1]))
			}
		}
	}
	if operator == "**" {
		operator = "** or pow()"
	}
	return nil, typeError("unsupported operand type(s) for %s: '%s' and '%s'", operator, typeName(a), typeName(b))
}

// isSequenceType tells what * repeats.
func isSequenceType(v Value) bool {
	switch v.(type) {
	case string, Markup, *List, *Tuple:
		return true
	}
	return false
}

func isNumber(v Value) bool {
	switch v.(type) {
	case bool, int64, *big.Int, float64:
		return true
	}
	return false
}

func bigInteger(v Value) (*big.Int, bool) {
	if i, ok := v.(*big.Int); ok {
		return i, true
	}
	i, ok := integer(v)
	return big.NewInt(i), ok
}

func float(v Value) (float64, error) {
	switch v := v.(type) {
	case float64:
		return v, nil
	case *big.Int:
		f, _ := new(big.Float).SetInt(v).Float64()
		if math.IsInf(f, 0) {
			return 0, raise("OverflowError", "int too large to convert to float")
		}
		return f, nil
	}
	i, _ := integer(v)
	return float64(i), nil
}

func numeric(operator string, a, b Value) (Value, error) {
	x, xWhole := bigInteger(a)
	y, yWhole := bigInteger(b)
	if xWhole && yWhole && operator != "/" {
		return wholeArithmetic(operator, x, y)
	}
	f, err := float(a)
	if err != nil {
		return nil, err
	}
	g, err := float(b)
	if err != nil {
		return nil, err
	}
	return floatArithmetic(operator, f, g, xWhole && yWhole)
}

func wholeArithmetic(operator string, x, y *big.Int) (Value, error) {
	if x.BitLen()+y.BitLen() > maxIntegerBits {
		return nil, limitError("an integer of more than %d bits", maxIntegerBits)
	}
	z := new(big.Int)
	switch operator {
	case "+":
		z.Add(x, y)
	case "-":
		z.Sub(x, y)
	case "*":
		z.Mul(x, y)
	case "//", "%":
		if y.Sign() == 0 && operator == "%" {
			return nil, raise("ZeroDivisionError", "integer modulo by zero")
		}
		if y.Sign() == 0 {
			return nil, raise("ZeroDivisionError", "integer division or modulo by zero")
		}
		rest := new(big.Int)
		z.QuoRem(x, y, rest)
		if rest.Sign() != 0 && rest.Sign() != y.Sign() { // Python rounds down
			z.Sub(z, big.NewInt(1))
			rest.Add(rest, y)
		}
		if operator == "%" {
			z = rest
		}
	case "**":
		if y.Sign() < 0 {
			f, _ := new(big.Float).SetInt(x).Float64()
			g, _ := new(big.Float).SetInt(y).Float64()
			return floatArithmetic("**", f, g, true)
		}
		if x.BitLen() > 1 && (!y.IsInt64() || int64(x.BitLen())*y.Int64() > maxIntegerBits || y.Int64() > maxIntegerBits) {
			return nil, limitError("an integer of more than %d bits", maxIntegerBits)
		}
		z.Exp(x, y, nil)
	}
	return normalInteger(z), nil
}

func floatArithmetic(operator string, f, g float64, whole bool) (Value, error) {
	switch operator {
	case "+":
		return f + g, nil
	case "-":
		return f - g, nil
	case "*":
		return f * g, nil
	case "/":
		if g == 0 {
			if whole {
				return nil, raise("ZeroDivisionError", "division by zero")
			}
			return nil, raise("ZeroDivisionError", "float division by zero")
		}
		return f / g, nil
	case "//":
		if g == 0 {
			return nil, raise("ZeroDivisionError", "float floor division by zero")
		}
		quotient, _ := floatDivide(f, g)
		return quotient, nil
	case "%":
		if g == 0 {
			return nil, raise("ZeroDivisionError", "float modulo")
		}
		_, rest := floatDivide(f, g)
		return rest, nil
	}
	if f == 0 && g < 0 {
		return nil, raise("ZeroDivisionError", "0.0 cannot be raised to a negative power")
	}
	result := math.Pow(f, g)
	if math.IsInf(result, 0) && !math.IsInf(f, 0) && !math.IsInf(g, 0) {
		return nil, raise("OverflowError", "(34, 'Numerical result out of range')")
	}
	if math.IsNaN(result) && !math.IsNaN(f) && !math.IsNaN(g) {
		return nil, typeError("complex numbers are not supported")
	}
	return result, nil
}

// floatDivide is CPython's float_divmod: the rest has the divisor's sign.
func floatDivide(f, g float64) (quotient, rest float64) {
	rest = math.Mod(f, g)
	quotient = (f - rest) / g
	if rest != 0 {
		if (g < 0) != (rest < 0) {
			rest += g
			quotient--
		}
	} else {
		rest = math.Copysign(0, g)
	}
	if quotient != 0 {
		floor := math.Floor(quotient)
		if quotient-floor > 0.5 {
			floor++
		}
		return floor, rest
	}
	return math.Copysign(0, f/g), rest
}

func negate(v Value, operator string) (Value, error) {
	if u, ok := v.(*undefined); ok {
		return nil, u.fail()
	}
	if f, ok := v.(float64); ok {
		if operator == "-" {
			return -f, nil
		}
		return f, nil
	}
	i, ok := bigInteger(v)
	if !ok {
		return nil, typeError("bad operand type for unary %s: '%s'", operator, typeName(v))
	}
	if operator == "-" {
		return normalInteger(new(big.Int).Neg(i)), nil
	}
	return normalInteger(i), nil
}

// floatText is Python's repr of a float: the shortest digits that read back,
// with an exponent below 1e-4 and from 1e16.
func floatText(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	s := strconv.FormatFloat(f, 'e', -1, 64)
	at := strings.IndexByte(s, 'e')
	exponent, _ := strconv.Atoi(s[at+1:])
	if exponent < -4 || exponent >= 16 {
		return s
	}
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
