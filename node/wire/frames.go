package wire

// Frames is what one step gave to the requests of one head.
type Frames struct {
	Version int     `cbor:"1,keyasint"`
	Frames  []Frame `cbor:"2,keyasint"`
}

// UnmarshalFrames decodes Frames as Unmarshal does. A head reads one for each step of
// each driver, so the usual fields are read here without reflection; a message that
// has others goes to Unmarshal.
func UnmarshalFrames(data []byte, frames *Frames) error {
	r := reader{data: data}
	if r.frames(frames) && len(r.data) == 0 {
		return nil
	}
	*frames = Frames{}
	return Unmarshal(data, frames)
}

// reader reads CBOR (RFC 8949, §3): items of definite length in their shortest form,
// or longer ones. Its methods report false for what they don't know.
type reader struct {
	data   []byte
	tokens []int32 // of all frames, in one piece
}

// Major types.
const (
	majorUnsigned = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	majorMap      = 5
)

// head reads an item's type and argument.
func (r *reader) head() (major byte, argument uint64, ok bool) {
	if len(r.data) == 0 {
		return 0, 0, false
	}
	first := r.data[0]
	r.data = r.data[1:]
	if first&31 < 24 {
		return first >> 5, uint64(first & 31), true
	}
	size := 1 << (first&31 - 24)
	if first&31 > 27 || len(r.data) < size {
		return 0, 0, false
	}
	for _, b := range r.data[:size] {
		argument = argument<<8 | uint64(b)
	}
	r.data = r.data[size:]
	return first >> 5, argument, true
}

// item reads the head of an item of a type.
func (r *reader) item(want byte) (argument uint64, ok bool) {
	major, argument, ok := r.head()
	return argument, ok && major == want
}

// number reads an integer that fits an int.
func (r *reader) number() (n int, ok bool) {
	major, argument, ok := r.head()
	if !ok || argument > 1<<62 {
		return 0, false
	}
	switch major {
	case majorUnsigned:
		return int(argument), true
	case majorNegative:
		return -1 - int(argument), true
	}
	return 0, false
}

// count reads the head of a list whose items take a byte or more each.
func (r *reader) count(major byte) (n int, ok bool) {
	argument, ok := r.item(major)
	return int(argument), ok && argument <= uint64(len(r.data))
}

func (r *reader) frames(frames *Frames) bool {
	if pairs, ok := r.count(majorMap); !ok || pairs != 2 {
		return false
	}
	var ok bool
	if key, found := r.number(); !found || key != 1 {
		return false
	}
	if frames.Version, ok = r.number(); !ok {
		return false
	}
	if key, found := r.number(); !found || key != 2 {
		return false
	}
	n, ok := r.count(majorArray)
	if !ok {
		return false
	}
	frames.Frames = make([]Frame, n)
	for i := range frames.Frames {
		if !r.frame(&frames.Frames[i]) {
			return false
		}
	}
	return true
}

func (r *reader) frame(f *Frame) bool {
	pairs, ok := r.count(majorMap)
	last := 0
	for range pairs {
		key, known := r.number()
		if !ok || !known || key <= last { // keys stand in order, each once
			return false
		}
		last = key
		var n int
		switch key {
		case 1:
			f.Version, ok = r.number()
		case 2:
			ok = r.id(&f.Request)
		case 3:
			n, ok = r.number()
			f.Attempt, ok = uint32(n), ok && n >= 0 && n <= 1<<32-1
		case 4:
			f.Epoch, ok = r.item(majorUnsigned)
		case 5:
			f.Choice, ok = r.number()
		case 6:
			f.Offset, ok = r.number()
		case 7:
			f.Tokens, ok = r.list()
		case 10:
			f.Finish, ok = r.finish()
		case 12:
			f.Cached, ok = r.number()
		default:
			return false
		}
	}
	return ok
}

func (r *reader) id(id *RequestID) bool {
	n, ok := r.count(majorBytes)
	if !ok || n != len(id) {
		return false
	}
	copy(id[:], r.data)
	r.data = r.data[n:]
	return true
}

func (r *reader) list() ([]int32, bool) {
	n, ok := r.count(majorArray)
	if !ok || n == 0 {
		return nil, false
	}
	from := len(r.tokens)
	for range n {
		token, ok := r.number()
		if !ok || token != int(int32(token)) {
			return nil, false
		}
		r.tokens = append(r.tokens, int32(token))
	}
	return r.tokens[from:len(r.tokens):len(r.tokens)], true
}

func (r *reader) finish() (FinishReason, bool) {
	n, ok := r.count(majorText)
	if !ok {
		return "", false
	}
	text := r.data[:n]
	r.data = r.data[n:]
	for _, known := range []FinishReason{FinishStop, FinishLength, FinishAbort} {
		if string(text) == string(known) {
			return known, true
		}
	}
	return "", false
}
