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
// 16 tokens side by side; dim is a multiple of 16. With 16 lanes two blocks at once
// share the loads of q, while there are two.
func scores(st store, rows int) {
	text(name("scores%sR%d", st.name, rows), "func(s *float32, sStride uintptr, q *float32, qStride uintptr, k *byte, blocks *int32, count, blockStride, dim uintptr)", name(" multiplies %d queries with blocks of keys.", rows))
	c := scoresCode{st: st, rows: rows, out: pointer("s"), outStride: pointer("sStride"), qStride: pointer("qStride"), k: pointer("k"), blocks: pointer("blocks")}
	count := NewParamAddr("count", 48)
	if !narrow {
		Label("pair")
		CMPQ(count, Imm(2))
		JLT(LabelRef("last"))
		c.scores(2)
		SUBQ(Imm(2), count)
		JMP(LabelRef("pair"))
		Label("last")
		CMPQ(count, Imm(0))
		JE(LabelRef("done"))
	}
	Label("block")
	c.scores(1)
	DECQ(count)
	JNZ(LabelRef("block"))
	Label("done")
	end()
}

type scoresCode struct {
	st                                 store
	rows                               int
	out, outStride, qStride, k, blocks GPVirtual
}

// scores computes the next n blocks.
func (c scoresCode) scores(n int) {
	keys := make([]GPVirtual, n)
	for i := range keys {
		keys[i] = GP64()
		MOVLQSX(Mem{Base: c.blocks, Disp: 4 * i}, keys[i])
		step := GP64()
		Load(Param("blockStride"), step)
		IMULQ(step, keys[i])
		ADDQ(c.k, keys[i])
	}
	q, dim := GP64(), GP64()
	Load(Param("q"), q)
	at := rowsAt(q, c.qStride, c.rows)
	acc := make([][][]VecVirtual, n)
	for i := range acc {
		acc[i] = make([][]VecVirtual, c.rows)
		for r := range acc[i] {
			acc[i][r] = zeroes()
		}
	}
	Load(Param("dim"), dim)
	loop := name("dimension%d", n)
	Label(loop)
	for j := range 8 {
		t := make([][]VecVirtual, n)
		for i, key := range keys {
			t[i] = sixteen()
			for p := range t[i] {
				c.st.load(Mem{Base: key, Disp: 16*c.st.size*j + 8*c.st.size*p}, t[i][p])
			}
		}
		for r := range c.rows {
			if n == 1 && !narrow {
				VFMADD231PS_BCST(at(r, 4*j), t[0][0], acc[0][r][0])
				continue
			}
			wide := vec()
			VBROADCASTSS(at(r, 4*j), wide)
			for i := range t {
				for p, v := range t[i] {
					VFMADD231PS(wide, v, acc[i][r][p])
				}
			}
		}
	}
	for _, key := range keys {
		ADDQ(U32(uint32(8*16*c.st.size)), key)
	}
	ADDQ(Imm(32), q)
	if c.rows > 3 {
		ADDQ(Imm(32), at(3, 0).Base)
	}
	SUBQ(Imm(8), dim)
	JNZ(LabelRef(loop))
	out := GP64()
	MOVQ(c.out, out)
	for r := range c.rows {
		if r > 0 {
			ADDQ(c.outStride, out)
		}
		for i := range acc {
			for p, v := range acc[i][r] {
				VMOVUPS(v, part{i: p}.at(out).Offset(64*i))
			}
		}
	}
	ADDQ(U32(uint32(64*n)), c.out)
	ADDQ(Imm(uint64(4*n)), c.blocks)
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
