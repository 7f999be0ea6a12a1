package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// maxQueries is the most query heads that share loads of keys and values.
const maxQueries = 6

// A store is a type of stored keys and values.
type store struct {
	name string
	size int
	load func(m Mem, t VecVirtual)
}

var stores = []store{
	{"F32", 4, func(m Mem, t VecVirtual) { VMOVUPS(m, t) }},
	{"F16", 2, func(m Mem, t VecVirtual) { VCVTPH2PS(m, t) }},
	{"BF16", 2, func(m Mem, t VecVirtual) { VPMOVZXWD(m, t); VPSLLD(Imm(16), t, t) }},
}

// rowsAt gives addresses of rows at a distance of stride bytes.
func rowsAt(base, stride GPVirtual, rows int) func(r, disp int) Mem {
	bases := []GPVirtual{base}
	if rows > 3 {
		next := GP64()
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, next)
		ADDQ(base, next)
		bases = append(bases, next)
	}
	return func(r, disp int) Mem {
		m := Mem{Base: bases[r/3], Disp: disp}
		if r%3 > 0 {
			m.Index, m.Scale = stride, uint8(r%3)
		}
		return m
	}
}

// scores: s[r][16·i+t] = Σ_d q[r][d] · k[blocks[i]][d][t]. Keys lie by dimension,
// 16 tokens side by side; dim is a multiple of 16.
func scores(st store, rows int) {
	text(name("scores%sR%d", st.name, rows), "func(s *float32, sStride uintptr, q *float32, qStride uintptr, k *byte, blocks *int32, count, blockStride, dim uintptr)", name(" multiplies %d queries with blocks of keys.", rows))
	s, sStride := Load(Param("s"), GP64()).(GPVirtual), Load(Param("sStride"), GP64()).(GPVirtual)
	qStride := Load(Param("qStride"), GP64()).(GPVirtual)
	k, blocks := Load(Param("k"), GP64()), Load(Param("blocks"), GP64())
	q := GP64()
	far := GP64()
	Label("block")
	key := GP64()
	MOVLQSX(Mem{Base: blocks}, key)
	step := GP64()
	Load(Param("blockStride"), step)
	IMULQ(step, key)
	ADDQ(k, key)
	Load(Param("q"), q)
	if rows > 3 {
		LEAQ(Mem{Base: qStride, Index: qStride, Scale: 2}, far)
		ADDQ(q, far)
	}
	at := func(r, disp int) Mem {
		m := Mem{Base: q, Disp: disp}
		if r >= 3 {
			m.Base = far
		}
		if r%3 > 0 {
			m.Index, m.Scale = qStride, uint8(r%3)
		}
		return m
	}
	acc := make([][]VecVirtual, rows)
	for r := range acc {
		acc[r] = zeroes()
	}
	dim := GP64()
	Load(Param("dim"), dim)
	Label("dimension")
	for j := range 8 {
		t := sixteen()
		for i := range t {
			st.load(Mem{Base: key, Disp: 16*st.size*j + 8*st.size*i}, t[i])
		}
		for r := range rows {
			if !narrow {
				VFMADD231PS_BCST(at(r, 4*j), t[0], acc[r][0])
				continue
			}
			wide := YMM()
			VBROADCASTSS(at(r, 4*j), wide)
			for i := range t {
				VFMADD231PS(wide, t[i], acc[r][i])
			}
		}
	}
	ADDQ(U32(uint32(8*16*st.size)), key)
	ADDQ(Imm(32), q)
	if rows > 3 {
		ADDQ(Imm(32), far)
	}
	SUBQ(Imm(8), dim)
	JNZ(LabelRef("dimension"))
	out := GP64()
	MOVQ(s, out)
	for r := range rows {
		if r > 0 {
			ADDQ(sStride, out)
		}
		for i, v := range acc[r] {
			VMOVUPS(v, part{i: i}.at(out))
		}
	}
	ADDQ(Imm(64), s)
	ADDQ(Imm(4), blocks)
	count := NewParamAddr("count", 48)
	DECQ(count)
	JNZ(LabelRef("block"))
	end()
}

// values: o[r][d] += Σ_t p[r][t] · v[t][d] for 16·panels dimensions, over tokens
// [first, first+tokens) counted from the start of blocks[0]. p[r][0] belongs to
// token first. Values lie by token.
func values(st store, rows, panels int) {
	text(name("values%sR%dP%d", st.name, rows, panels), "func(o *float32, oStride uintptr, p *float32, pStride uintptr, v *byte, blocks *int32, first, tokens, blockStride, tokenStride uintptr)", name(" adds values weighed by %d queries' probabilities.", rows))
	vectors := panels * parts()
	size := 64 / parts()
	oStride := Load(Param("oStride"), GP64()).(GPVirtual)
	out := Load(Param("o"), GP64()).(GPVirtual)
	acc := make([][]VecVirtual, rows)
	cursor := GP64()
	MOVQ(out, cursor)
	for r := range rows {
		if r > 0 {
			ADDQ(oStride, cursor)
		}
		for i := range vectors {
			a := vec()
			VMOVUPS(Mem{Base: cursor, Disp: size * i}, a)
			acc[r] = append(acc[r], a)
		}
	}
	p, pStride := Load(Param("p"), GP64()).(GPVirtual), Load(Param("pStride"), GP64()).(GPVirtual)
	far := GP64()
	if rows > 3 {
		LEAQ(Mem{Base: pStride, Index: pStride, Scale: 2}, far)
		ADDQ(p, far)
	}
	at := func(r int) Mem {
		m := Mem{Base: p}
		if r >= 3 {
			m.Base = far
		}
		if r%3 > 0 {
			m.Index, m.Scale = pStride, uint8(r%3)
		}
		return m
	}
	blocks := Load(Param("blocks"), GP64())
	tokens := Load(Param("tokens"), GP64())
	tokenStride := Load(Param("tokenStride"), GP64())
	v, value, left, skip := GP64(), GP64(), GP64(), GP64()
	Load(Param("v"), v)
	Load(Param("first"), skip)

	Label("block")
	MOVLQSX(Mem{Base: blocks}, value)
	step := GP64()
	Load(Param("blockStride"), step)
	IMULQ(step, value)
	ADDQ(v, value)
	MOVQ(U32(16), left)
	SUBQ(skip, left)
	IMULQ(tokenStride, skip)
	ADDQ(skip, value)
	XORQ(skip, skip)
	CMPQ(left, tokens)
	CMOVQGT(tokens, left)
	SUBQ(left, tokens)

	Label("token")
	t := make([]VecVirtual, vectors)
	for i := range t {
		t[i] = vec()
		st.load(Mem{Base: value, Disp: size / 4 * st.size * i}, t[i])
	}
	wide := vec()
	for r := range rows {
		VBROADCASTSS(at(r), wide)
		for i := range t {
			VFMADD231PS(wide, t[i], acc[r][i])
		}
	}
	ADDQ(Imm(4), p)
	if rows > 3 {
		ADDQ(Imm(4), far)
	}
	ADDQ(tokenStride, value)
	DECQ(left)
	JNZ(LabelRef("token"))
	ADDQ(Imm(4), blocks)
	TESTQ(tokens, tokens)
	JNZ(LabelRef("block"))

	Load(Param("o"), out)
	for r := range rows {
		if r > 0 {
			ADDQ(oStride, out)
		}
		for i, v := range acc[r] {
			VMOVUPS(v, Mem{Base: out, Disp: size * i})
		}
	}
	end()
}
