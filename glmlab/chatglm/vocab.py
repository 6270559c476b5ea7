"""Exact fast tokenizers of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4-9B-Chat, built from the vocabulary files of their Hub folders.

Nothing but `tokenizers` and transformers is needed: SentencePiece's file format is read here, and `save_pretrained` writes a plain
tokenizer.json that AutoTokenizer loads anywhere. `tokenizer.init_kwargs["chat_format"]`, which survives saving, names the
generation: "chatglm" (ChatGLM-6B), "chatglm2", "chatglm3" or "glm4".

The three older generations read text as their authors' classes do: markers such as `[gMASK]` or `<|user|>` in a text are text, unless
a call says `split_special_tokens=False`. GLM-4's are parsed unless it says `split_special_tokens=True`, which is the same for all.
"""

import base64
import json
import re
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from glmlab import paths
from glmlab.tiny.tokenizer import SPECIAL_TOKENS as GLM4_SPECIALS
from glmlab.tiny.tokenizer import SPLIT as GLM4_SPLIT

STYLES = ("chatglm", "chatglm2", "chatglm3", "glm4")
IMAGE_TOKENS = 20000  # ids the first release of ChatGLM-6B kept for images, in front of those of text
V1_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
#: What ChatGLM-6B writes for white space SentencePiece would drop; the longest run of spaces first.
V1_SYMBOLS = {"\n": "<n>", "\t": "<|tab|>"} | {" " * length: f"<|blank_{length}|>" for length in range(80, 1, -1)}
GLM_SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
#: Rows of the embedding -> the vocabulary file that belongs to it.
OWNERS = {
    130528: "ice_text.model of ChatGLM-6B since April 2023, read with image_tokens=0",
    150528: f"ice_text.model of ChatGLM-6B's first release, read with image_tokens={IMAGE_TOKENS}",
    65024: "tokenizer.model of ChatGLM2-6B or ChatGLM3-6B",
    151552: "tokenizer.model of GLM-4-9B-Chat",
}

# --- the SentencePiece file --------------------------------------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces in sentencepiece_model.proto
UNIGRAM, BPE = 1, 2                                                # types of models there
SPACE = "▁"                                                        # how pieces write a space


@dataclass(frozen=True)
class SentencePiece:
    """What a SentencePiece model file says, as far as it bears on the ids."""
    pieces: tuple[tuple[str, float, int], ...]  # (text, score, type); the place is the id
    kind: int = UNIGRAM                         # or BPE
    byte_fallback: bool = False
    normalizer: str = ""                        # name of the rules: nmt_nfkc, identity…
    charsmap: bytes = b""                       # the rules, compiled
    dummy_prefix: bool = True                   # a space is put in front of every text
    collapse_spaces: bool = True                # runs of spaces become one, those at the ends go


def read_sentencepiece(path) -> SentencePiece:
    """Read a SentencePiece model. Errors: ValueError for any other file, a cut one, or the pointer Git LFS leaves in its place."""
    data = _vocabulary_bytes(path)
    try:
        return _sentencepiece(data)
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{paths.shown(path)} is no SentencePiece model, or it is cut ({error}); fetch it again") from error


def _sentencepiece(data: bytes) -> SentencePiece:
    pieces, trainer, rules = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            rules = dict(_fields(value))
    if not pieces or not trainer:
        raise ValueError("it has no pieces")
    return SentencePiece(
        tuple(pieces), kind=trainer.get(3, UNIGRAM), byte_fallback=bool(trainer.get(35, 0)), normalizer=rules.get(1, b"").decode("utf-8"),
        charsmap=rules.get(2, b""), dummy_prefix=bool(rules.get(3, 1)), collapse_spaces=bool(rules.get(4, 1)))


def _fields(data: bytes):
    """The (number, value) of each field of a protobuf message: int for a varint, else bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value

    while place < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {place}")
        size = {1: 8, 5: 4}.get(wire) or varint()
        if place + size > len(data):
            raise ValueError(f"it ends within a field at byte {place}")
        yield number, data[place:place + size]
        place += size


def _vocabulary_bytes(path) -> bytes:
    data = Path(path).read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{paths.shown(path)} is a Git LFS pointer, not the vocabulary; fetch the file itself (git lfs pull)")
    return data


# --- ChatGLM-6B --------------------------------------------------------------------------------------------------

def v1_tokenizer(path, image_tokens: int = 0, dummy_prefix: bool = True):
    """The tokenizer of ChatGLM-6B from its ice_text.model: text [gMASK] <sop>, and with a second text: text [gMASK] <sop> text <eop>.

    image_tokens: 20000 for checkpoints of the first release (150,528 ids), which have that many ids for images in front; all others
    move up. dummy_prefix=False: text is encoded as if it continued a line. Special tokens the file lacks follow its last piece.
    Ids are those of SentencePiece, but for the order of the pieces of a long run of one character ("！！！！！！！！"): orders of equal
    score are decided by rounding, which it does in 32 bits and `tokenizers` in 64. Errors: ValueError for a vocabulary of another kind.
    """
    model = read_sentencepiece(path)
    flags = (model.byte_fallback, model.dummy_prefix, model.collapse_spaces)
    if (model.kind, model.normalizer) != (UNIGRAM, "nmt_nfkc") or not all(flags):
        raise ValueError(f"{paths.shown(path)} is no vocabulary of ChatGLM-6B: that one is unigram with nmt_nfkc and byte fallback; "
                         "glm_tokenizer reads those of ChatGLM2 and ChatGLM3")
    return build_v1(model, image_tokens, dummy_prefix)


def build_v1(model: SentencePiece, image_tokens: int = 0, dummy_prefix: bool = True):
    """`v1_tokenizer` from what a file says. Without a charsmap the rules of nmt_nfkc are those of `tokenizers`, nearly the same."""
    # SentencePiece finds only normal pieces and user symbols in a text. For the latter it puts length * (best score, at least 0) - 0.1.
    hidden = -1e6
    scores = {USER_DEFINED: -0.1} | dict.fromkeys((UNKNOWN, CONTROL, UNUSED, BYTE), hidden)
    vocabulary = [(f"<image_{number}>", hidden) for number in range(image_tokens)]
    vocabulary += [(text, scores.get(kind, score)) for text, score, kind in model.pieces]
    unknown = image_tokens + [kind for _, _, kind in model.pieces].index(UNKNOWN)
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=True))
    # A hidden piece still costs less than a character that is written in bytes. So no word may hold both that and a hidden piece.
    letters = {text for text, _, kind in model.pieces if kind == NORMAL and len(text) == 1}
    if missing := {letter for text, score in vocabulary if score == hidden for letter in text} - letters:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_either(sorted(missing))), "isolated")
    backend.normalizer = v1_normalizer(model.charsmap, dummy_prefix)
    # SentencePiece drops every space in front of the first character, the one it put there and those of control pieces alike.
    backend.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2**31, 0),
        *(decoders.Replace(symbol, text) for text, symbol in V1_SYMBOLS.items())])
    backend.add_special_tokens([text for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)] + ["<pad>", *V1_SPECIALS])
    return _wrapped(backend, "chatglm", "$A [gMASK] <sop>", "$A [gMASK] <sop> $B <eop>", split_special_tokens=True,
                    bos_token="<sop>", eos_token="<eop>", pad_token="<pad>", unk_token="<unk>", mask_token="[MASK]")


def v1_normalizer(charsmap: bytes, dummy_prefix: bool):
    """nmt_nfkc as SentencePiece applies it: the longest rule at every place.

    `tokenizers` applies a charsmap to the first rule that fits a grapheme and drops the rest of the grapheme: combining marks vanish,
    kana with separate voicing marks and jamo stay apart. So \\x01, which the rules delete, parts the characters of a grapheme first,
    and NFC composes them afterwards, except where a noncharacter keeps marks apart that SentencePiece leaves as they are.
    """
    apart = "\ufdd0"
    rules = [
        normalizers.Replace(Regex("(?<=.)(?=[\\p{M}\u200c\u200d\uff9e\uff9f])"), "\x01"), normalizers.Precompiled(charsmap),
        normalizers.Replace(Regex(_loose_marks()), apart), normalizers.NFC(), normalizers.Replace(Regex(apart + "(?=[\\p{M}ᆨ-ᇂ])"), ""),
    ] if charsmap else [normalizers.Nmt(), normalizers.NFKC()]
    return normalizers.Sequence([
        *(normalizers.Replace(text, symbol) for text, symbol in V1_SYMBOLS.items()), *rules,
        normalizers.Replace(Regex("^ +| +$" if dummy_prefix else " +$"), ""), normalizers.Replace(Regex(" {2,}"), " "),
        *([normalizers.Prepend(SPACE)] if dummy_prefix else []), normalizers.Replace(" ", SPACE),
        normalizers.Replace(Regex(SPACE + "+$"), "")])  # typed ones too


def _loose_marks() -> str:
    """A regex that finds the places in front of combining marks which nmt_nfkc does not compose with what is before them."""
    heads = {}  # mark -> what it composes with, itself decomposed
    for character in map(chr, range(0xD800)):
        parts = unicodedata.normalize("NFD", character)
        hangul = "가" <= character <= "힣"  # no marks: NFC may compose all of them
        if len(parts) > 1 and not hangul and unicodedata.normalize("NFC", parts) == character:
            heads.setdefault(parts[-1], []).append(parts[:-1])
    places = ["(?<=" + _either(V1_SYMBOLS.values()) + ")", "(?![" + "".join(heads) + "])"]
    places += [f"(?<!{_either(before)})(?={mark})" for mark, before in heads.items()]
    return r"(?<=.)(?=\p{M})(?:" + "|".join(places) + ")|(?<=[가-힣])(?=[ᆨ-ᇂ])"


def _either(texts) -> str:
    return "|".join(re.sub(r"([^\w\s])", r"\\\1", text, flags=re.ASCII) for text in texts)


# --- ChatGLM2 and ChatGLM3 ---------------------------------------------------------------------------------------

def glm_tokenizer(path, roles: bool = True):
    """The tokenizer of ChatGLM3 from its tokenizer.model: [gMASK] sop text. roles=False: of ChatGLM2, which lacks the role tokens.

    Errors: ValueError for a vocabulary of another kind.
    """
    model = read_sentencepiece(path)
    odd = {kind for _, _, kind in model.pieces} & {USER_DEFINED, UNUSED}
    if (model.kind, model.charsmap, model.byte_fallback, model.collapse_spaces) != (BPE, b"", True, False) or odd:
        raise ValueError(f"{paths.shown(path)} is no vocabulary of ChatGLM2 or ChatGLM3: those are BPE with byte fallback, text unchanged "
                         "and no user symbols; v1_tokenizer reads that of ChatGLM-6B, glm4_tokenizer that of GLM-4")
    return build_glm(model, roles)


def build_glm(model: SentencePiece, roles: bool = True):
    """`glm_tokenizer` from what a file says."""
    ids = {text: number for number, (text, _, _) in enumerate(model.pieces)}
    if clash := ids.keys() & {*GLM_SPECIALS, *GLM_ROLES}:
        raise ValueError(f"the vocabulary has the pieces {', '.join(sorted(clash))}: names of the special tokens that follow its end")
    backend = Tokenizer(models.BPE(ids, _merges(model), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend(SPACE)] if model.dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", len(prefix), 0)])
    backend.add_special_tokens([text for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)])
    # Two markers are written like words: a call that parses special tokens must not find them inside "sophisticated".
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False, single_word=name.isalpha()) for name in GLM_SPECIALS])
    backend.add_special_tokens(list(GLM_ROLES if roles else ()))
    return _wrapped(backend, "chatglm3" if roles else "chatglm2", "[gMASK] sop $A", "[gMASK] sop $A $B </s>", split_special_tokens=True,
                    bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


def _merges(model: SentencePiece) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, in the order of SentencePiece: the result with the best score first."""
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    ids = {text: number for number, (text, _, _) in enumerate(model.pieces)}
    found = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                found.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


# --- GLM-4-9B-Chat -----------------------------------------------------------------------------------------------

def glm4_tokenizer(path):
    """The tokenizer of GLM-4-9B-Chat from its tokenizer.model (tiktoken text): [gMASK] <sop> text.

    Errors: ValueError with the line that is not `base64 rank`.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from glmlab.chat import CHAT_TEMPLATE
    letters, ranks = bytes_to_unicode(), {}
    for number, line in enumerate(_vocabulary_bytes(path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks["".join(letters[byte] for byte in base64.b64decode(token, validate=True))] = int(rank)
        except ValueError as error:
            raise ValueError(f"{paths.shown(path)}, line {number} is not a token in base64 and its rank: the file is cut or no vocabulary "
                             "of GLM-4; fetch it again") from error
    # tiktoken joins whichever neighbours give the lowest rank, and takes a whole word that is a token without joining.
    merges = [(text[:cut], text[cut:]) for text in sorted(ranks, key=ranks.get) for cut in range(1, len(text))
              if text[:cut] in ranks and text[cut:] in ranks]
    backend = Tokenizer(models.BPE(ranks, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GLM4_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(GLM4_SPECIALS))
    tokenizer = _wrapped(backend, "glm4", "[gMASK] <sop> $A", "[gMASK] <sop> $A $B <|endoftext|>",
                         eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _wrapped(backend: Tokenizer, chat_format: str, single: str, pair: str, **settings):
    """The transformers tokenizer around a backend; single, pair: how one text and two become a sequence."""
    from transformers import PreTrainedTokenizerFast
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    used = [(name, backend.token_to_id(name)) for name in special if name in pair.split()]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_format=chat_format, padding_side="left", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=[name for name in special if name not in settings.values()], **settings)


# --- a folder of the Hub -----------------------------------------------------------------------------------------

def load_tokenizer(folder, style: str | None = None):
    """The tokenizer of an original Hub folder from its vocabulary file, or None if it has none (ice_text.model, tokenizer.model).

    style: chatglm, chatglm2, chatglm3 or glm4; None finds out from config.json, tokenizer_config.json and the file.
    Errors: ValueError for an unknown style, a folder of another family, or if ChatGLM2 and ChatGLM3 cannot be told apart.
    """
    if style not in (None, *STYLES):
        raise ValueError(f"style {style!r}: choose {', '.join(STYLES)}")
    folder = Path(folder)
    path = next((folder / name for name in ("ice_text.model", "tokenizer.model") if (folder / name).is_file()), None)
    if path is None:
        return None
    config, settings = _read_json(folder / "config.json"), _read_json(folder / "tokenizer_config.json")
    style = style or _style(path, config, settings)
    if style == "chatglm":
        first_release = config.get("vocab_size") == 150528
        return v1_tokenizer(path, settings.get("num_image_tokens", IMAGE_TOKENS if first_release else 0))
    return glm4_tokenizer(path) if style == "glm4" else glm_tokenizer(path, roles=style == "chatglm3")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _style(path: Path, config: dict, settings: dict) -> str:
    """Which generation a folder is of."""
    if config.get("model_type", "chatglm") not in ("chatglm", "glm", "glm4"):
        raise ValueError(f"{paths.shown(path.parent)} is a {config['model_type']!r} model; its {path.name} is none of ChatGLM or GLM-4")
    if path.name == "ice_text.model" or "inner_hidden_size" in config or "position_encoding_2d" in config:
        return "chatglm"
    if 151552 in (config.get("padded_vocab_size"), config.get("vocab_size")) or re.match(rb"[\w+/=]+ \d+\s", path.read_bytes()[:200]):
        return "glm4"
    names = " ".join(str(name) for name in (config.get("_name_or_path"), settings.get("name_or_path"), path.parent.resolve().name)).lower()
    if "<|assistant|>" in json.dumps(settings) or "chatglm3" in names:
        return "chatglm3"
    if "chatglm2" in names:
        return "chatglm2"
    lengths = {8192: "chatglm3", 131072: "chatglm3", 32768: None if "rope_ratio" in config else "chatglm2"}  # 32k versions exist of both
    if style := lengths.get(config.get("seq_length")):
        return style
    raise ValueError(f"{paths.shown(path.parent)} may be ChatGLM2 or ChatGLM3, whose vocabulary files are the same; "
                     "say style='chatglm2' or style='chatglm3'")


def check_ids(tokenizer, config) -> None:
    """Refuse a tokenizer whose ids are not those of a checkpoint. config: a transformers config, or a dict from config.json.

    Errors: ValueError that says which ids disagree and which vocabulary file belongs to the checkpoint.
    """
    def told(field: str):
        return config.get(field) if isinstance(config, dict) else getattr(config, field, None)

    rows = told("padded_vocab_size") or told("vocab_size")
    largest = max(tokenizer.get_vocab().values())
    wrong = [f"the tokenizer has ids up to {largest}, the checkpoint {rows} rows"] if rows and largest >= rows else []
    names = {"eos_token_id": tokenizer.eos_token, "mask_token_id": "[MASK]", "gmask_token_id": "[gMASK]"}
    if tokenizer.init_kwargs.get("chat_format") == "chatglm":  # elsewhere the first token of a sequence is no setting of the model
        names["bos_token_id"] = tokenizer.bos_token
    for field, name in names.items():
        expected = told(field) if isinstance(told(field), (list, tuple)) else [told(field)]
        number = tokenizer.convert_tokens_to_ids(name)
        if expected != [None] and number not in expected:
            wrong.append(f"{name} is {number} in the tokenizer, {' or '.join(map(str, expected))} in the checkpoint")
    if wrong:
        raise ValueError(f"tokenizer and checkpoint do not belong together: {'; '.join(wrong)}. "
                         f"The checkpoint's vocabulary file is {OWNERS.get(rows, 'the one saved with it')}")
