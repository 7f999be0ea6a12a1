# Makes features.json.gz: tokenizers with small vocabularies, one for each thing
# that a tokenizer.json may ask for, and what Hugging Face tokenizers 0.22.2
# gives for the texts. Run with that version installed.
import copy, gzip, json, random
from tokenizers import Tokenizer, Regex, models, pre_tokenizers, trainers

random.seed(7)
WORDS = """the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so said what up its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well back through years where much your way down should because long each just state those people too mister good water world life house again school number between never another while last might great old year come since against right came take used himself few""".split()
CORPUS = []
for i in range(1500):
    n = random.randint(3, 14)
    s = ' '.join(random.choice(WORDS) for _ in range(n))
    r = random.random()
    if r < .15: s = s.capitalize() + random.choice('.!?') 
    if r < .1: s += "\n\n"
    elif r < .2: s += "  \t" + str(random.randint(0, 99999))
    elif r < .3: s += " don't we'll I'm they've it's HE'S"
    elif r < .4: s += " caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u0437\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \u043c\u0438\u0440 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f"
    elif r < .5: s += "\tif (x == %d) { return f(x[i]) != 0; }\n    // done" % random.randint(0, 999)
    CORPUS.append(s)

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace('{1,3}', '')
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
U, L = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = r"[^\r\n\p{L}\p{N}]?" + U + "*" + L + "+" + C + r"|[^\r\n\p{L}\p{N}]?" + U + "+" + L + "*" + C + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?" + U + "*" + L + "+" + r"|[^\r\n\p{L}\p{N}]?" + U + "+" + L + "*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
AYA = r"\d{1,3}(?=(?:\d{3})*\b)"

def train(pre, alphabet, fallback):
    t = Tokenizer(models.BPE(unk_token='<unk>' if fallback else None))
    t.pre_tokenizer = pre
    corpus = CORPUS
    if fallback:
        corpus = [s.replace(' ', '\u2581') for s in CORPUS]
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=['<unk>', '<s>', '</s>'] + ['<0x%02X>' % b for b in range(256)] if fallback else ['<|end|>'], show_progress=False))
    return json.loads(t.to_str())['model']

BYTES = train(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), pre_tokenizers.ByteLevel.alphabet(), False)
PIECES = train(pre_tokenizers.Split('\u2581', 'merged_with_next'), [], True)

def bl(prefix=False, regex=False):
    return dict(type='ByteLevel', add_prefix_space=prefix, trim_offsets=True, use_regex=regex)
def split(p, behavior='Isolated', invert=False, kind='Regex'):
    return dict(type='Split', pattern={kind: p}, behavior=behavior, invert=invert)
def seq(*x): return dict(type='Sequence', pretokenizers=list(x))
def nseq(*x): return dict(type='Sequence', normalizers=list(x))
def dseq(*x): return dict(type='Sequence', decoders=list(x))
def added(id, content, special=False, **k):
    return dict(id=id, content=content, single_word=k.get('single_word', False), lstrip=k.get('lstrip', False), rstrip=k.get('rstrip', False), normalized=k.get('normalized', False), special=special)
def template(before, after):
    s = [dict(SpecialToken=dict(id=x[0], type_id=0)) for x in before] + [dict(Sequence=dict(id='A', type_id=0))] + [dict(SpecialToken=dict(id=x[0], type_id=0)) for x in after]
    return dict(type='TemplateProcessing', single=s, pair=s + [dict(Sequence=dict(id='B', type_id=1))], special_tokens={x[0]: dict(id=x[0], ids=[x[1]], tokens=[x[0]]) for x in before + after})

BL = bl()
REPLACE = dict(type='Replace', pattern=dict(String=' '), content='\u2581')
PREPEND = dict(type='Prepend', prepend='\u2581')
DREPLACE = dict(type='Replace', pattern=dict(String='\u2581'), content=' ')
DFB, DFUSE = dict(type='ByteFallback'), dict(type='Fuse')
def strip(a, b): return dict(type='Strip', content=' ', start=a, stop=b)
def meta(scheme, sp): return dict(type='Metaspace', replacement='\u2581', prepend_scheme=scheme, split=sp)
LLAMA_DECODER = dseq(DREPLACE, DFB, DFUSE, strip(1, 0))

cases = []
def case(name, vocab, **k):
    cases.append(dict(name=name, vocabulary=vocab, tokenizer=dict(version='1.0', truncation=None, padding=None, added_tokens=k.get('added', []), normalizer=k.get('normalizer'), pre_tokenizer=k.get('pre'), post_processor=k.get('post'), decoder=k.get('decoder', BL if vocab == 'bytes' else LLAMA_DECODER)), model=k.get('model', {})))

N = max(BYTES['vocab'].values()) + 1
CHAT = [added(0, '<|end|>', True), added(N, '<|im_start|>', True), added(N + 1, '<|im_end|>', True), added(N + 2, '<think>'), added(N + 3, '<th')]
for name, p in dict(llama3=LLAMA3, qwen2=QWEN2, qwen35=QWEN35, gpt2=GPT2, o200k=O200K, tekken=TEKKEN).items():
    case('pattern ' + name, 'bytes', pre=seq(split(p), BL), added=CHAT)
    case('pattern ' + name + ' by a search', 'bytes', pre=seq(split('(?:' + p + ')'), BL), added=CHAT)
case('pattern llama3 removed and inverted', 'bytes', pre=seq(split(LLAMA3, 'Removed', True), BL))
case('pattern deepseek', 'bytes', pre=seq(*[split(p) for p in DEEPSEEK], BL))
case('pattern digits from the right', 'bytes', pre=seq(split(AYA), split(O200K), BL))
case('possessive pattern', 'bytes', pre=seq(split(r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s+(?!\S)|\s+"), BL))
HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
HAM = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
case('pattern kimi', 'bytes', pre=seq(split(r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?" + HAN + "*" + HAM + "+" + C + r"|[^\r\n\p{L}\p{N}]?" + HAN + "+" + HAM + "*" + C + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), BL))
for p in [r"\p{N}{1,3}+|\p{L}{,2}", r"^\s*\w+|\w+$|\b\W", r"[\w&&[^\d]]+|[[a-c][x-z]]+", r"\h+|[\h!]", r"(?m:'.+')|.", r"\Aa|e\z|\B.\B", r"(?i:THE|ST)+|\p{^L}+?\x61|\u4f60\x{597d}", r"[]a]+|[\]\-e-]", r"(\w)\1|(?>a+)b|a{2}{1,2}"[:-5]]:
    case('pattern ' + p, 'bytes', pre=seq(split(p), BL))
case('byte level regex', 'bytes', pre=bl(regex=True), post=bl())
case('byte level prefix space', 'bytes', pre=bl(prefix=True, regex=True), added=CHAT)
case('smollm', 'bytes', pre=seq(dict(type='Digits', individual_digits=True), bl(regex=True)), added=CHAT)
case('digits together', 'bytes', pre=seq(dict(type='Digits', individual_digits=False), bl(regex=True)))
case('punctuation', 'bytes', pre=seq(dict(type='Punctuation', behavior='Contiguous'), BL))
case('white space', 'bytes', pre=seq(dict(type='WhitespaceSplit'), BL))
for b in ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous']:
    for inv in [False, True]:
        case('split %s %s' % (b, inv), 'bytes', pre=seq(split('e', b, inv, 'String'), BL))
        case('split regex %s %s' % (b, inv), 'bytes', pre=seq(split(r'[aeiou ]', b, inv), BL))
for f in ['NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'StripAccents']:
    case('normalizer ' + f, 'bytes', normalizer=dict(type=f), pre=seq(split(QWEN2), BL), added=CHAT)
case('normalizer Strip', 'bytes', normalizer=dict(type='Strip', strip_left=True, strip_right=True), pre=BL, added=CHAT)
case('normalizer Replace regex', 'bytes', normalizer=dict(type='Replace', pattern=dict(Regex=r'\s+|[xyz]'), content='--'), pre=BL)
case('normalizers', 'bytes', normalizer=nseq(dict(type='NFD'), dict(type='StripAccents'), dict(type='Lowercase'), dict(type='NFC')), pre=BL)
case('ignore merges', 'bytes', pre=seq(split(LLAMA3), BL), model=dict(ignore_merges=True, drop=3))
case('some bytes are missing', 'bytes', pre=BL, model=dict(lose=True))
FANCY = CHAT[:2] + [added(N + 1, '<l>', True, lstrip=True), added(N + 2, '<r>', True, rstrip=True), added(N + 3, '<b>', lstrip=True, rstrip=True), added(N + 4, 'word', single_word=True), added(N + 5, 'Norm', normalized=True), added(N + 6, 'caf\u00e9', normalized=True), added(N + 7, ' spaced ', False), added(N + 8, '  ', normalized=True), added(N + 9, '    ', normalized=True), added(N + 10, '\u00e9t\u00e9')]
case('added tokens', 'bytes', pre=seq(split(LLAMA3), BL), added=FANCY)
case('added tokens, NFC', 'bytes', normalizer=dict(type='NFC'), pre=seq(split(QWEN2), BL), added=FANCY)
case('added tokens, lower case', 'bytes', normalizer=dict(type='Lowercase'), pre=seq(split(QWEN2), BL), added=FANCY)
case('template', 'bytes', pre=BL, post=template([['<|end|>', 0]], [['<|end|>', 0]]), added=CHAT)
case('template and byte level', 'bytes', pre=BL, post=dict(type='Sequence', processors=[bl(), template([['<|im_start|>', N]], [])]), added=CHAT)
case('decoder none', 'bytes', pre=BL, decoder=None, added=CHAT)
case('decoder byte level and strip', 'bytes', pre=BL, decoder=dseq(BL, strip(2, 3)))
P = max(PIECES['vocab'].values()) + 1
S = [added(0, '<unk>', True), added(1, '<s>', True), added(2, '</s>', True)]
FB = dict(byte_fallback=True, fuse_unk=True, unk_token='<unk>')
case('llama2', 'pieces', normalizer=nseq(PREPEND, REPLACE), added=S, post=template([['<s>', 1]], []), model=FB)
case('llama2 normalized added', 'pieces', normalizer=nseq(PREPEND, REPLACE), added=S + [added(P, '<x>', True, rstrip=True), added(P + 1, 'word', normalized=True), added(P + 2, '<y>', lstrip=True)], model=FB)
case('gemma', 'pieces', normalizer=REPLACE, pre=split(' ', 'MergedWithPrevious', False, 'String'), added=S + [added(P, '\n\n'), added(P + 1, '\u2581\u2581')], decoder=dseq(DREPLACE, DFB, DFUSE), model=FB)
for scheme in ['always', 'first', 'never']:
    for sp in [True, False]:
        case('metaspace %s %s' % (scheme, sp), 'pieces', pre=meta(scheme, sp), added=S, decoder=meta(scheme, sp), model=FB)
case('unknown fused', 'pieces', normalizer=REPLACE, added=S, model=dict(fuse_unk=True, unk_token='<unk>'))
case('unknown one by one', 'pieces', normalizer=REPLACE, added=S, model=dict(fuse_unk=False, unk_token='<unk>'))
case('unknown dropped', 'pieces', normalizer=REPLACE, added=S, model=dict())
case('strip each token', 'pieces', normalizer=REPLACE, added=S, decoder=dseq(DREPLACE, DFB, strip(1, 1)), model=FB)
case('strip both ends', 'pieces', normalizer=REPLACE, added=S, decoder=dseq(DREPLACE, DFB, DFUSE, strip(2, 2)), model=FB)

TEXTS = ["", " ", "  ", "\n", "Hello world", " Hello  world ", "don't we'LL I'\u017f it'S 'Tis 're", "tab\there\r\n\r\nnext  \n x", "a\u0300b e\u0301 \u1e9b\u0323 \u212b \ufb01 \u2460", "1234567 12 3 \u0663\u0664 \u00b2\u00bd x1y22z333", "\u4f60\u597d\u4e16\u754c\u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f", "<|im_start|>user\nhi<|im_end|>\n<think>no</think> <th <thx", "x <l> y <l>z  <r>  w<r>v <b> q <b><b>", "word words a word sword word", "norm Norm NORM caf\u00e9 cafe\u0301 CAF\u00c9 \u00e9t\u00e9", "a spaced b  spaced  c", "x    y     z  ", "foo_bar(x[0]) != {'a': 1.5e-3}; // end\n\tif (!x) return;", "ABCdef GHi JKL's \u0301XY \u01c5x \u02b0A\u4e2dB's", "\u0301\u0301a \u0301A\u0301 \u0301\n", "...!!! ??\n\n\n/// a/b\r\n/", "\u00a0nbsp\u3000wide\u2028line\u0085next \u200bzero", "<s>[INST] hi [/INST]</s> <unk> <0x41>", "\u2581marks \u2581\u2581and \u2581 spaces\u2581", "\ufffd\ufffe \x00\x01\x7f", "ends with space ", "the the the  and   of    a", "e" * 60, "aeiou " * 8, " " * 70, "\u0301" * 40 + "a" + "\u0323\u0301" * 20, "o\u0301\u0323\u0302 q\u0307\u0323 \u1100\u1161\u11a8 \u0344", "\u10d50\U000105c0 \U00016d40\U000116d0", "\u0130\u03a3 \u03c3\u03c2 \u1e9e \u01c4", "<x> a<x>  b <y> word", "\n\n\na\n\n \n"]
rnd = random.Random(3)
CHARS = "abcdefghij ABC  \n\t'.,!12\u0661\u00e9\u00df\u0301\u4f60\u3042\U0001f600\u02b0\u01c5<>|/\r_\u2581"
for i in range(25):
    TEXTS.append(''.join(rnd.choice(CHARS) for _ in range(rnd.randint(1, 40))))
for i in range(8):
    TEXTS.append(' '.join(rnd.choice(WORDS) for _ in range(rnd.randint(5, 30))))

def short(r): # what is left out is as the member before it
    if r.get('ids_special') == r['ids']: del r['ids_special']
    if r['decoded_skip'] == r['decoded']: del r['decoded_skip']
    if 'text' in r and r['decoded'] == r['text']: del r['decoded']
    return r

out = []
for c in cases:
    m = copy.deepcopy(BYTES if c['vocabulary'] == 'bytes' else PIECES)
    k = dict(c['model'])
    if k.pop('lose', False):
        gone = [x for x in m['vocab'] if x in ('e', '\u00c3', '\u010a')]
        m['merges'] = [p for p in m['merges'] if not any(g in ''.join(p) for g in gone)]
        m['vocab'] = {x: i for x, i in m['vocab'].items() if not any(g in x for g in gone)}
    drop = k.pop('drop', 0)
    if drop: m['merges'] = [p for i, p in enumerate(m['merges']) if i % drop]
    for key in ['unk_token', 'fuse_unk', 'byte_fallback', 'ignore_merges']:
        m[key] = k.get(key, None if key == 'unk_token' else False)
    full = dict(c['tokenizer'], model=m)
    t = Tokenizer.from_str(json.dumps(full))
    rows = []
    def decode(ids, skip):
        try: return t.decode(ids, skip_special_tokens=skip)
        except BaseException: return None  # Strip panics on texts shorter than what it strips
    size = max(list(m['vocab'].values()) + [a['id'] for a in full['added_tokens']]) + 1
    for text in TEXTS:
        a = t.encode(text, add_special_tokens=False).ids
        b = t.encode(text, add_special_tokens=True).ids
        rows.append(short(dict(text=text, ids=a, ids_special=b, decoded=decode(a, False), decoded_skip=decode(a, True))))
    noise = []
    for i in range(15):
        ids = [rnd.randrange(size) for _ in range(rnd.randint(1, 30))]
        if i % 2: ids = [rnd.randrange(min(size, 300)) for _ in range(rnd.randint(1, 30))]
        noise.append(short(dict(ids=ids, decoded=decode(ids, False), decoded_skip=decode(ids, True))))
    o = dict(name=c['name'], vocabulary=c['vocabulary'], tokenizer=c['tokenizer'], model={k: m[k] for k in ['unk_token', 'fuse_unk', 'byte_fallback', 'ignore_merges']}, drop=drop, lose=bool(c['model'].get('lose')), rows=rows, noise=noise)
    out.append(o)
import sys
data = json.dumps(dict(vocabularies=dict(bytes=dict(vocab=BYTES['vocab'], merges=BYTES['merges']), pieces=dict(vocab=PIECES['vocab'], merges=PIECES['merges'])), cases=out), ensure_ascii=False, separators=(',', ':')).encode()
open(sys.argv[1], 'wb').write(gzip.compress(data, 9, mtime=0))
print(len(out), 'cases', len(data), len(gzip.compress(data, 9)))
