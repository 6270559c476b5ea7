"""Tokenizers of the ChatGLM generations: exact to the original classes, to SentencePiece, and after saving."""

import json
import random
import struct
import unicodedata

import pytest

from glmlab import chat, paths
from glmlab.chatglm import vocab
from glmlab.chatglm.tiny_vocab import tiny_glm_tokenizer, tiny_v1_tokenizer

GOLDEN = paths.ROOT.parent / "shared" / "golden" / "tokenizers"
FILES = {"chatglm": "chatglm_6b/ice_text.model", "chatglm2": "chatglm3_6b/tokenizer.model", "chatglm3": "chatglm3_6b/tokenizer.model",
         "glm4": "glm4_9b_chat/tokenizer.model"}


def real_file(style: str):
    path = GOLDEN / FILES[style]
    if not path.is_file():
        pytest.skip(f"no original vocabulary in {paths.shown(GOLDEN)}")
    return path


def golden(name: str) -> dict:
    return json.loads((GOLDEN / name / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def real():
    """`real(style)`: the tokenizer of an original vocabulary, built once."""
    built = {}

    def get(style: str):
        if style not in built:
            path = real_file(style)
            built[style] = {"chatglm": vocab.v1_tokenizer, "chatglm3": vocab.glm_tokenizer, "glm4": vocab.glm4_tokenizer,
                            "chatglm2": lambda path: vocab.glm_tokenizer(path, roles=False)}[style](path)
        return built[style]

    return get


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


# --- against the original classes --------------------------------------------------------------------------------

def test_v1_golden_strings(real):
    tokenizer, no_dummy = real("chatglm"), vocab.v1_tokenizer(real_file("chatglm"), dummy_prefix=False)
    cases = golden("chatglm_6b")["encode"]
    assert len(cases) == 50
    for case in cases:
        text = case["text"]
        assert plain(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False) == case["sp_ids"]
        assert tokenizer.encode(text) == [*case["sp_ids"], 130001, 130004]
        assert plain(no_dummy, text) == case["sp_ids_no_dummy"]
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_no_cleanup"]
        assert tokenizer.decode(case["ids_with_special"], skip_special_tokens=True) == case["decoded_no_cleanup"]
    for pair in golden("chatglm_6b")["pairs"]:
        assert tokenizer.encode(pair["prompt"], pair["answer"]) == pair["ids"]
    batch = golden("chatglm_6b")["batch"]
    assert tokenizer(batch["texts"][:2], padding=True)["input_ids"] == batch["input_ids"][:2]


def test_v1_first_release_moves_all_ids(real):
    tokenizer = vocab.v1_tokenizer(real_file("chatglm"), image_tokens=20000)
    for case in golden("chatglm_6b")["encode"]:
        assert plain(tokenizer, case["text"]) == case["ids_image20000"]
        assert tokenizer.decode(case["ids_image20000"]) == real("chatglm").decode(case["sp_ids"])
    assert tokenizer.convert_tokens_to_ids(["[MASK]", "[gMASK]", "<sop>", "<eop>"]) == [150000, 150001, 150004, 150005]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, len(tokenizer)) == (20003, 20000, 150344)


@pytest.mark.parametrize("style, name", [("chatglm2", "chatglm2_6b"), ("chatglm3", "chatglm3_6b")])
def test_glm_golden_strings(real, style, name):
    tokenizer, cases = real(style), golden(name)
    assert len(cases["encode"]) == 50
    for case in cases["encode"]:
        text = case["text"]
        assert plain(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False) == case["ids"]
        assert tokenizer.encode(text) == case["ids_with_special"]
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        # ChatGLM2's class never shows its markers, ChatGLM3's always does
        assert tokenizer.decode(case["ids_with_special"], skip_special_tokens=style == "chatglm2") == case["decoded_special"]
    batch = tokenizer(cases["batch"]["texts"], padding=True)
    assert batch["input_ids"] == cases["batch"]["input_ids"] and batch["attention_mask"] == cases["batch"]["attention_mask"]
    assert cases["meta"]["special"].items() <= tokenizer.get_added_vocab().items()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_chatglm3_conversations_read_back(real):
    tokenizer = real("chatglm3")
    for case in golden("chatglm3_6b")["build_chat_input"]:
        assert tokenizer.decode(case["input_ids"]) == case["decoded"]
    for case in golden("chatglm3_6b")["encode_special_tokens_true"]:
        if "sop" not in case["text"]:  # a call that parses special tokens parses all of them, the original only the roles
            assert tokenizer.encode(case["text"], add_special_tokens=False, split_special_tokens=False) == case["ids"]


def test_glm4_golden_strings(real):
    tokenizer, cases = real("glm4"), golden("glm4_9b_chat")
    assert len(cases["encode"]) == 53
    for case in cases["encode"]:
        text, ids = case["text"], case["ids"]
        assert plain(tokenizer, text) == case["plain_ids"] and tokenizer.decode(case["plain_ids"]) == text
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text  # the original puts spaces around special tokens, and only there
        assert tokenizer.decode(ids) == case["decoded"] or ids != case["plain_ids"]
        assert tokenizer.encode(text) == [151331, 151333, *ids]
    for case in cases["chats"]:
        assert [tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, return_dict=False)] == case["ids"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 151329 and len(tokenizer) == 151343


# --- against SentencePiece ---------------------------------------------------------------------------------------

HAN = ("的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日于"
       "起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长，。！？；：“”‘’（）《》、…—·")
WORDS = ("the quick brown sophisticated sopranos eop sop [MASK] [gMASK] <sop> <eop> </s> <unk> <pad> <n> <|tab|> <|blank_4|> <|user|> "
         "<0x0A> def return print() https://github.com/THUDM/ChatGLM-6B CamelCase snake_case don't I'm 3.14 1,000 naïve café").split()
EMOJI = ["😀", "👋🏽", "🇨🇳", "👨\u200d👩\u200d👧", "❤️", "1️⃣", "🀄"]
CONTROLS = [chr(code) for code in range(32)] + list("\x7f\x80\x85\x9f\xa0\xad\u200b\u200d\u2028\u202e\u3000\ufeff\ufffd▁")
FULL_WIDTH = [chr(code) for code in range(0xFF01, 0xFFEF) if unicodedata.category(chr(code)) != "Cn"] + list("℃㈱①½²ﬁ㎏…")
ANY = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
ACCENTED = "tiếng Việt café Ångström ガギパ が 한국어 값 ≠"


def random_texts(seed: int, count: int, anything: bool = True):
    """Seeded strings of Chinese, English, emoji, white space, controls, full-width and decomposed forms (and any code point)."""
    rng = random.Random(seed)
    kinds = [
        lambda: "".join(rng.choices(HAN, k=rng.randint(1, 8))), lambda: rng.choice(WORDS) + rng.choice(["", " "]),
        lambda: rng.choice(EMOJI), lambda: " " * rng.choice([1, 1, 2, 3, 8, 17, 81, 161]),
        lambda: rng.choice("\n\t\r") * rng.randint(1, 3), lambda: rng.choice(CONTROLS), lambda: "".join(rng.choices(FULL_WIDTH, k=3)),
        lambda: unicodedata.normalize("NFD", "".join(rng.choices(ACCENTED, k=4))), lambda: str(rng.randrange(10**9)),
        *([lambda: "".join(rng.choices(ANY, k=2)), lambda: chr(rng.randrange(0x4E00, 0x9FA6))] if anything else []),
    ]
    for _ in range(count):
        yield "".join(rng.choice(kinds)() for _ in range(rng.randint(1, 14)))


def v1_symbols(text: str) -> str:
    for written, symbol in [("\n", "<n>"), ("\t", "<|tab|>"), *((" " * n, f"<|blank_{n}|>") for n in range(80, 1, -1))]:
        text = text.replace(written, symbol)
    return text


def v1_white_space(text: str) -> str:
    for written, symbol in [("\n", "<n>"), ("\t", "<|tab|>"), *((" " * n, f"<|blank_{n}|>") for n in range(2, 81))]:
        text = text.replace(symbol, written)
    return text


def differences(tokenizer, path, texts, before=str, after=str) -> list[str]:
    """The texts that a tokenizer encodes or decodes otherwise than SentencePiece does with the same file."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the test compares with the package sentencepiece")
    original, wrong = sentencepiece.SentencePieceProcessor(model_file=str(path)), []
    for text in texts:
        ids = original.encode(before(text))
        if plain(tokenizer, text) != ids or tokenizer.decode(ids, skip_special_tokens=True) != after(original.decode(ids)):
            wrong.append(ascii(text))
    return wrong


def test_v1_equals_sentencepiece(real):
    assert differences(real("chatglm"), real_file("chatglm"), random_texts(11, 4000), v1_symbols, v1_white_space) == []


def test_chatglm3_equals_sentencepiece(real):
    runs = (character * length for character in HAN + "a-=_*.! \n" for length in (2, 7, 40))
    assert differences(real("chatglm3"), real_file("chatglm3"), [*random_texts(12, 4000), *runs]) == []


def test_v1_runs_of_one_character_differ_in_order_only(real):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the test compares with the package sentencepiece")
    original = sentencepiece.SentencePieceProcessor(model_file=str(real_file("chatglm")))
    for character in HAN + "a-=_*.!":
        for length in (2, 7, 40):
            assert sorted(plain(real("chatglm"), character * length)) == sorted(original.encode(character * length))


@pytest.mark.parametrize("text, read", [("e\u0302\u0301", "ế"), ("ｶﾞ", "ガ"), ("か\u3099", "が"), ("①\u0301", "1\u0301"), ("ㄱㅏ", "가"),
                                        ("\u1112\u1161\u11ab", "한"), ("a\u0302\u0323", "â\u0323"), ("가\u11a8", "가\u11a8"), ("～", "～")])
def test_v1_normaliser_where_libraries_differ(real, text, read):
    tokenizer = real("chatglm")
    assert tokenizer.decode(plain(tokenizer, text)) == read
    assert differences(tokenizer, real_file("chatglm"), [text]) == []


# --- stand-ins, trained here -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """{style: path} of small SentencePiece models of both kinds, trained on seeded text."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="stand-ins are trained with the package sentencepiece")
    folder, texts = tmp_path_factory.mktemp("stand-ins"), [text for text in random_texts(13, 3000, anything=False)]
    common = dict(byte_fallback=True, split_digits=True, character_coverage=0.99, vocab_size=1200, minloglevel=2, num_threads=1,
                  max_sentence_length=100_000)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(v1_symbols(text) for text in texts), model_prefix=str(folder / "ice_text"), model_type="unigram",
        normalization_rule_name="nmt_nfkc", user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))],
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"], pad_id=3, **common)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(text.replace("sop", "").replace("eop", "").split()) for text in texts),
        model_prefix=str(folder / "tokenizer"), model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, **common)
    return {"chatglm": folder / "ice_text.model", "chatglm3": folder / "tokenizer.model"}


def test_stand_ins_equal_sentencepiece(stand_ins):
    v1, v3 = vocab.v1_tokenizer(stand_ins["chatglm"]), vocab.glm_tokenizer(stand_ins["chatglm3"])
    assert differences(v1, stand_ins["chatglm"], random_texts(14, 1500), v1_symbols, v1_white_space) == []
    assert differences(v3, stand_ins["chatglm3"], random_texts(15, 1500)) == []
    assert v3.convert_tokens_to_ids(["[MASK]", "[gMASK]", "sop", "<|observation|>"]) == [1200, 1201, 1203, 1208]


# --- vocabularies made here --------------------------------------------------------------------------------------

TEXTS = [text for text in random_texts(16, 1500, anything=False)]


@pytest.fixture(scope="module")
def tiny():
    return {"chatglm": tiny_v1_tokenizer(TEXTS, 900), "chatglm3": tiny_glm_tokenizer(TEXTS, 800),
            "chatglm2": tiny_glm_tokenizer(TEXTS, 800, roles=False)}


@pytest.mark.parametrize("style, last", [
    ("chatglm", [*vocab.V1_SPECIALS, "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81)), *(f"<0x{byte:02X}>" for byte in range(256))]),
    ("chatglm3", [*vocab.GLM_SPECIALS, *vocab.GLM_ROLES]), ("chatglm2", [*vocab.GLM_SPECIALS])])
def test_tiny_ids_are_in_the_original_order(tiny, style, last):
    tokenizer = tiny[style]
    size = 900 if style == "chatglm" else 800
    assert len(tokenizer) == len(tokenizer.get_vocab()) == size
    assert tokenizer.convert_ids_to_tokens(range(size - len(last), size)) == last
    first = ["<unk>", "<s>", "</s>", "<pad>", "<n>"] if style == "chatglm" else ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == first


def test_tiny_vocabularies_are_the_same_every_time(tiny):
    for style, make, size in (("chatglm", tiny_v1_tokenizer, 900), ("chatglm3", tiny_glm_tokenizer, 800)):
        assert make(iter(TEXTS), size).backend_tokenizer.to_str() == tiny[style].backend_tokenizer.to_str()


def test_tiny_round_trip(tiny):
    for text in random_texts(17, 1500):
        for style in ("chatglm2", "chatglm3"):
            assert tiny[style].decode(plain(tiny[style], text)) == text.replace("▁", " ")
        read = tiny["chatglm"].decode(plain(tiny["chatglm"], text))
        assert tiny["chatglm"].decode(plain(tiny["chatglm"], read)).split() == read.split()
    chinese = "您好，请问这个月的话费\n\t是多少  钱 sophisticated sop"
    assert tiny["chatglm"].decode(plain(tiny["chatglm"], chinese)) == chinese.replace("，", ",")


def test_tiny_vocabularies_say_when_they_cannot_be_filled():
    with pytest.raises(ValueError, match="the texts give only .* pieces"):
        tiny_glm_tokenizer(["你好"], 800)
    with pytest.raises(ValueError, match="vocab_size is .* too small"):
        tiny_v1_tokenizer(["你好"], 340)


# --- markers, saving ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", ["chatglm", "chatglm2", "chatglm3"])
def test_markers_in_text_stay_text(tiny, style):
    tokenizer = tiny[style]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for text in ("[gMASK]sop<sop><|user|>你好<eop></s>", "[MASK] sop eop <pad>"):
        assert not special & set(chat.text_ids(tokenizer, text))
        assert tokenizer.encode(text, add_special_tokens=False) == chat.text_ids(tokenizer, text)
        assert special & set(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))
    for parse in (False, True):
        assert not special & set(tokenizer.encode("sophisticated sopranos, eops", add_special_tokens=False, split_special_tokens=not parse))


@pytest.mark.parametrize("style", vocab.STYLES)
def test_saved_tokenizer_is_plain_and_the_same(tiny, tokenizer, tmp_path, style, request):
    from transformers import AutoTokenizer
    made = request.getfixturevalue("real")(style) if style == "glm4" else tiny[style]
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__module__.startswith("transformers.") and loaded.padding_side == "left"
    assert loaded.init_kwargs["chat_format"] == chat.format_of(loaded).name == style
    assert loaded.get_added_vocab() == made.get_added_vocab() and loaded.all_special_ids == made.all_special_ids
    for text in random_texts(18, 200):
        for split in (False, True, None):
            assert loaded.encode(text, split_special_tokens=split) == made.encode(text, split_special_tokens=split)
        ids = made.encode(text, text)
        assert loaded.encode(text, text) == ids and loaded.decode(ids) == made.decode(ids)
        assert loaded.decode(ids, skip_special_tokens=True) == made.decode(ids, skip_special_tokens=True)
    assert loaded(["你", "你好吗"], padding=True)["input_ids"] == made(["你", "你好吗"], padding=True)["input_ids"]


# --- files and folders -------------------------------------------------------------------------------------------

def written(model: vocab.SentencePiece) -> bytes:
    """A SentencePiece model file, as protobuf writes it."""
    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])

    def field(number: int, value) -> bytes:
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        value = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(value)) + value

    pieces = b"".join(field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in model.pieces)
    rules = field(1, model.normalizer) + field(2, model.charsmap) + field(3, int(model.dummy_prefix)) + field(4, int(model.collapse_spaces))
    return pieces + field(2, field(3, model.kind) + field(35, int(model.byte_fallback))) + field(3, rules)


HEAD = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
LETTERS = [(letter, -float(rank), 1) for rank, letter in enumerate("▁你好abc", 1)]
BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
SPECIALS = [(name, 0.0, 3) for name in vocab.V1_SPECIALS]
SMALL_V1 = vocab.SentencePiece((*HEAD, ("<pad>", 0.0, 3), ("<n>", 0.0, 4), *LETTERS, *SPECIALS, *BYTES),
                               byte_fallback=True, normalizer="nmt_nfkc")
SMALL_V3 = vocab.SentencePiece((*HEAD, *BYTES, *LETTERS, ("你好", -0.5, 1)), kind=vocab.BPE, byte_fallback=True, normalizer="identity",
                               collapse_spaces=False)


def test_reads_what_protobuf_writes(tmp_path):
    for model in (SMALL_V1, SMALL_V3):
        (tmp_path / "m.model").write_bytes(written(model))
        assert vocab.read_sentencepiece(tmp_path / "m.model") == model
        (tmp_path / "m.model").write_bytes(written(model)[:-5])
        with pytest.raises(ValueError, match="is no SentencePiece model, or it is cut"):
            vocab.read_sentencepiece(tmp_path / "m.model")


@pytest.mark.parametrize("content", [b"", b"{}", "文本".encode(), b"IQ== 0\nIg== 1\n", b"\x80\x02}q\x00."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="no SentencePiece model"):
        vocab.glm_tokenizer(tmp_path / "tokenizer.model")


def test_wrong_vocabularies_are_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for make in (vocab.v1_tokenizer, vocab.glm_tokenizer, vocab.glm4_tokenizer):
        with pytest.raises(ValueError, match="Git LFS pointer"):
            make(path)
    path.write_bytes(b"IQ== 0\nIg==\n")
    with pytest.raises(ValueError, match="line 2"):
        vocab.glm4_tokenizer(path)
    path.write_bytes(written(SMALL_V1))
    with pytest.raises(ValueError, match="v1_tokenizer reads that of ChatGLM-6B"):
        vocab.glm_tokenizer(path)
    path.write_bytes(written(SMALL_V3))
    with pytest.raises(ValueError, match="no vocabulary of ChatGLM-6B"):
        vocab.v1_tokenizer(path)
    path.write_bytes(written(vocab.SentencePiece((*SMALL_V3.pieces, ("sop", -9.0, 1)), vocab.BPE, True, "identity", b"", True, False)))
    with pytest.raises(ValueError, match="the pieces sop"):
        vocab.glm_tokenizer(path)


TIKTOKEN = b"IQ== 0\nIg== 1\nISI= 2\n"
V1_CONFIG = {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 16384}


@pytest.mark.parametrize("name, content, config, settings, style", [
    ("ice_text.model", written(SMALL_V1), {}, {}, "chatglm"),
    ("tokenizer.model", written(SMALL_V1), V1_CONFIG, {}, "chatglm"),
    ("tokenizer.model", TIKTOKEN, {"model_type": "chatglm", "padded_vocab_size": 151552}, {}, "glm4"),
    ("tokenizer.model", TIKTOKEN, {"model_type": "chatglm"}, {}, "glm4"),
    ("tokenizer.model", written(SMALL_V3), {"seq_length": 32768}, {}, "chatglm2"),
    ("tokenizer.model", written(SMALL_V3), {"seq_length": 8192}, {}, "chatglm3"),
    ("tokenizer.model", written(SMALL_V3), {"seq_length": 32768, "rope_ratio": 50, "_name_or_path": "chatglm3-6b-32k"}, {}, "chatglm3"),
    ("tokenizer.model", written(SMALL_V3), {"seq_length": 32768, "rope_ratio": 50}, {"name_or_path": "THUDM/chatglm2-6b-32k"}, "chatglm2"),
    ("tokenizer.model", written(SMALL_V3), {"seq_length": 512}, {"chat_template": "<|user|>{{ x }}<|assistant|>"}, "chatglm3"),
])
def test_a_folder_tells_its_generation(tmp_path, name, content, config, settings, style):
    assert vocab.load_tokenizer(tmp_path) is None
    (tmp_path / name).write_bytes(content)
    for file, values in (("config.json", config), ("tokenizer_config.json", settings)):
        if values:
            (tmp_path / file).write_text(json.dumps(values), encoding="utf-8")
    tokenizer = vocab.load_tokenizer(tmp_path)
    assert tokenizer.init_kwargs["chat_format"] == chat.format_of(tokenizer).name == style
    if style == "chatglm3":
        assert vocab.load_tokenizer(tmp_path, style="chatglm2").init_kwargs["chat_format"] == "chatglm2"


def test_a_folder_that_does_not_tell(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(written(SMALL_V3))
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "seq_length": 32768, "rope_ratio": 50}')
    with pytest.raises(ValueError, match="style='chatglm2' or style='chatglm3'"):
        vocab.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="choose chatglm, chatglm2, chatglm3, glm4"):
        vocab.load_tokenizer(tmp_path, style="v3")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is a 'llama' model"):
        vocab.load_tokenizer(tmp_path)


@pytest.mark.parametrize("config, settings, image_tokens", [
    (V1_CONFIG | {"vocab_size": 130528}, {"num_image_tokens": 0}, 0), (V1_CONFIG | {"vocab_size": 130528}, {}, 0),
    (V1_CONFIG | {"vocab_size": 150528}, {}, 20000), (V1_CONFIG | {"vocab_size": 150528}, {"num_image_tokens": 0}, 0)])
def test_a_folder_tells_its_image_tokens(tmp_path, config, settings, image_tokens):
    (tmp_path / "ice_text.model").write_bytes(written(SMALL_V1))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = vocab.load_tokenizer(tmp_path)
    assert len(tokenizer) == len(SMALL_V1.pieces) + image_tokens and tokenizer.pad_token_id == 3 + image_tokens
    assert tokenizer.decode(plain(tokenizer, "你好\nabc")) == "你好\nabc"


# --- ids of tokenizer and checkpoint -----------------------------------------------------------------------------

SLIM = {"vocab_size": 130528, "bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001}
FIRST = {"vocab_size": 150528, "bos_token_id": 150004, "eos_token_id": 150005, "mask_token_id": 150000, "gmask_token_id": 150001}
V3 = {"padded_vocab_size": 65024, "eos_token_id": 2, "pad_token_id": 0}
GLM4 = {"vocab_size": 151552, "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329}


def test_ids_of_real_vocabularies(real):
    first = vocab.v1_tokenizer(real_file("chatglm"), image_tokens=20000)
    vocab.check_ids(first, FIRST)
    for style, config in (("chatglm", SLIM), ("chatglm2", V3), ("chatglm3", V3), ("glm4", GLM4)):
        vocab.check_ids(real(style), config)
    with pytest.raises(ValueError, match=r"\[gMASK\] is 130001 in the tokenizer, 150001 in the checkpoint.* image_tokens=20000"):
        vocab.check_ids(real("chatglm"), FIRST)
    with pytest.raises(ValueError, match="ids up to 150343, the checkpoint 130528 rows.*image_tokens=0"):
        vocab.check_ids(first, SLIM)
    with pytest.raises(ValueError, match="tokenizer.model of ChatGLM2-6B or ChatGLM3-6B"):
        vocab.check_ids(real("glm4"), V3)
    with pytest.raises(ValueError, match="</s> is 2 in the tokenizer, 151329 or 151336 or 151338 in the checkpoint.*GLM-4-9B-Chat"):
        vocab.check_ids(real("chatglm3"), GLM4)


def test_ids_are_compared_with_config_objects_too(tiny):
    from transformers import GlmConfig
    vocab.check_ids(tiny["chatglm3"], GlmConfig(vocab_size=800, eos_token_id=[2, 797, 799], pad_token_id=0))
    with pytest.raises(ValueError, match="ids up to 799, the checkpoint 799 rows.*the one saved with it"):
        vocab.check_ids(tiny["chatglm3"], GlmConfig(vocab_size=799, eos_token_id=2, pad_token_id=0))
    v1 = tiny["chatglm"]
    ids = {"vocab_size": 900, "bos_token_id": v1.convert_tokens_to_ids("<sop>"), "eos_token_id": v1.convert_tokens_to_ids("<eop>"),
           "mask_token_id": v1.convert_tokens_to_ids("[MASK]"), "gmask_token_id": v1.convert_tokens_to_ids("[gMASK]")}
    vocab.check_ids(v1, ids)
    for field in ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id"):
        with pytest.raises(ValueError, match="in the checkpoint"):
            vocab.check_ids(v1, ids | {field: 7})
