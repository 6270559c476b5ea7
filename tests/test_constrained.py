"""Constrained answers: the right answer is always allowed, whatever else is allowed can be read back, and the stop id comes in time."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlab import answering, chat, constrained, encoding, generation, paths
from glmlab.chatglm import vocab
from glmlab.constrained import Copying
from glmlab.tasks import triplets
from glmlab.tasks.triplets import RELATIONS, Relation, Sentence, Triple

TEXT = "张思源是云帆（苏州）科技公司的总经理，毕业于青石大学；云帆（苏州）科技公司总部在苏州。"
TRIPLES = [Triple("张思源", "工作于", "云帆（苏州）科技公司"), Triple("张思源", "担任", "总经理"), Triple("云帆（苏州）科技公司", "总部在", "苏州")]
GENERATIONS = ("chatglm", "chatglm2", "chatglm3", "glm4")
each = pytest.mark.parametrize("generation_name", GENERATIONS)


def walk(tokenizer, rule, rng, room):
    """Ids chosen at random among the allowed ones, up to the stop id."""
    written = []
    while True:
        allowed = rule(written)
        assert allowed and len(set(allowed)) == len(allowed) and len(written) < room
        written.append(rng.choice(allowed))
        if written[-1] in chat.stop_ids(tokenizer):
            return written


def checked(tokenizer, written, text, relations=RELATIONS):
    """The triples of an answer, which must be what its lines say, each once, from the sentence and from the list."""
    answer = generation.answer_text(tokenizer, written)
    found = triplets.parse(answer, relations)
    if answer == "无":
        assert found == []
        return found
    assert found and len(found) == len(answer.splitlines())
    assert triplets.parse(triplets.answer(found), relations) == found
    for line, triple in zip(answer.splitlines(), found):
        assert triplets.normalise(line).replace('"', "") == triplets.normalise(f"({', '.join(triple)})").replace('"', "")
        assert triple.head != triple.tail
        assert triple.relation in map(triplets.normalise, relations)
        assert triplets.in_text(triple.head, text) and triplets.in_text(triple.tail, text)
    return found


# --- tokens ------------------------------------------------------------------------------------------------------

@each
@pytest.mark.parametrize("text", [TEXT, "A-7  号\t线，50％！\nIt's 1998。", "䶮𠮷🎉é", "(王, 位于, B, Inc.)\n无"])
def test_the_bytes_of_the_tokens_are_the_text(family, generation_name, text):
    tokenizer = family[generation_name]
    ids = chat.text_ids(tokenizer, text)
    joined = b"".join(constrained.tokens(tokenizer).by_id[number] for number in ids).decode()
    if generation_name == "chatglm":
        for character, symbol in vocab.V1_SYMBOLS.items():  # those that this small vocabulary has no piece for
            joined = joined.replace(symbol, character)
    assert joined.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
    if generation_name != "chatglm":
        assert joined.removeprefix(" " * (generation_name != "glm4")) == text


def test_special_tokens_are_no_text(family):
    for tokenizer in family.values():
        assert not set(constrained.tokens(tokenizer).by_id) & set(tokenizer.all_special_ids)


def test_a_vocabulary_without_all_bytes_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    small = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "(": 1}, [])), chat_format="chatglm3")
    with pytest.raises(ValueError, match="no token for 241 of the 256 bytes"):
        constrained.tokens(small)


# --- what is allowed ---------------------------------------------------------------------------------------------

@each
@pytest.mark.parametrize("triples", [TRIPLES, TRIPLES[:1], []])
def test_the_right_answer_is_allowed_token_by_token(family, generation_name, triples):
    tokenizer = family[generation_name]
    ids = chat.answer_ids(tokenizer, triplets.answer(triples))
    rule = Copying(tokenizer, TEXT, 400)
    assert all(ids[place] in rule(ids[:place]) for place in range(len(ids)))


@each
def test_the_right_answers_of_the_shipped_rows_are_allowed(family, generation_name):
    tokenizer = family[generation_name]
    rows, _ = triplets.read(paths.data("triplets", "test_triplet.jsonl"))
    for row in rows[:40]:
        ids, rule = chat.answer_ids(tokenizer, triplets.answer(row.triples)), Copying(tokenizer, row.text, 1000)
        assert all(ids[place] in rule(ids[:place]) for place in range(len(ids))), row


def allowed_texts(tokenizer, text, answer, **more):
    """What may follow the beginning of an answer, as bytes; "" is the stop id."""
    whole = chat.answer_ids(tokenizer, answer)[:-1]
    return {constrained.tokens(tokenizer).by_id.get(number, b"") for number in Copying(tokenizer, text, 400, **more)(whole)}


def test_what_may_follow(tokenizer):
    def first(answer, text=TEXT, **more):
        return {found[:1] for found in allowed_texts(tokenizer, text, answer, **more)}

    assert b"" in allowed_texts(tokenizer, TEXT, "无") and len(allowed_texts(tokenizer, TEXT, "无")) == 1
    assert first("(张思源") == {"是".encode()[:1], b","}               # on in the sentence, or the end of the name
    assert first("(张思源, ") == {name.encode()[:1] for name in RELATIONS}
    assert first("(张思源, 担任, 总经理") == {"，".encode()[:1], b")"}
    assert first("(张思源, 担任, 总经理)") == {b"", b"\n"}
    assert first("(云帆（苏州") == {"）".encode()[:1]}                 # half a pair of brackets is no name
    assert first("(张思源, 担任, 总经理)\n(张思源, 担任, 总经理") == {"，".encode()[:1]}  # each triple once
    assert first("(张思源, 位于, 苏", relations={"位于": Relation("")}) == {"州".encode()[:1], b")"}
    with pytest.raises(ValueError, match="token .*was not among the allowed ones"):
        first("(李")
    with pytest.raises(ValueError, match="token .*was not among the allowed ones"):
        first("(张思源, 认识, ")


def test_a_token_may_be_a_part_of_a_character(tokenizer):
    """No token of this vocabulary holds 䶮 whole; its bytes are allowed one after another, and no other's."""
    text = "龚䶮在青石大学。"
    ids = chat.text_ids(tokenizer, "䶮")
    assert len(ids) > 1
    start = chat.answer_ids(tokenizer, "(")[:-1]
    rule = Copying(tokenizer, text, 200)
    for place, number in enumerate(ids):
        assert number in rule([*start, *ids[:place]])
        assert place == 0 or len(rule([*start, *ids[:place]])) <= 2


def test_full_width_is_copied_as_the_tokenizer_writes_it(family):
    ids = chat.answer_ids(family["chatglm"], "(云帆(苏州)科技公司, 总部在, 苏州)")
    rule = Copying(family["chatglm"], TEXT, 400)
    assert all(number in rule(ids[:place]) for place, number in enumerate(ids))


def test_the_ids_may_come_in_any_order_of_calls(tokenizer):
    """A request that is computed again, or another beginning: the same answer as from a fresh rule."""
    ids, other = (chat.answer_ids(tokenizer, triplets.answer(triples)) for triples in (TRIPLES, TRIPLES[1:]))
    rule = Copying(tokenizer, TEXT, 400)
    for written in (ids[:9], ids[:4], other[:12], ids[:9], [], ids[:-1]):
        assert sorted(rule(written)) == sorted(Copying(tokenizer, TEXT, 400)(written))


# --- random walks ------------------------------------------------------------------------------------------------

ALPHABET = "甲乙工作于位担任ab1 ,，、()（）[]\"“\n。;|㈠é\u0301䶮🎉<n>_▁"


@settings(max_examples=150, deadline=None)
@given(text=st.text(ALPHABET, min_size=0, max_size=30), seed=st.integers(0, 10**6), room=st.integers(28, 90),
       name=st.sampled_from(GENERATIONS))
def test_whatever_is_allowed_can_be_read_back_and_ends_in_time(family, text, seed, room, name):
    tokenizer = family[name]
    written = walk(tokenizer, Copying(tokenizer, text, room), random.Random(seed), room)
    checked(tokenizer, written, text)


@each
def test_walks_through_a_real_sentence(family, generation_name):
    tokenizer = family[generation_name]
    lengths = set()
    for seed in range(40):
        written = walk(tokenizer, Copying(tokenizer, TEXT, 120), random.Random(seed), 120)
        lengths.add(len(checked(tokenizer, written, TEXT)))
    assert len(lengths) > 2


def test_every_triple_that_can_be_said_is_said_once_and_then_the_answer_ends(tokenizer):
    relation = {"位于": Relation("")}
    rule, written = Copying(tokenizer, "甲乙", 400, relation), []
    while not written or written[-1] not in chat.stop_ids(tokenizer):
        allowed = rule(written)
        going_on = [number for number in allowed if number not in chat.stop_ids(tokenizer)]
        if not written[2:]:
            going_on = [number for number in going_on if constrained.tokens(tokenizer).by_id[number][-1:] in b"(\n"] or going_on
        written.append((going_on or allowed)[0])
    assert len(checked(tokenizer, written, "甲乙", relation)) == 1  # one less than there are characters: no tail is its own head


def test_no_name_is_in_relation_to_itself(tokenizer):
    text = "阿里在云上，阿里总部在杭州。"
    assert b")" not in {found[:1] for found in allowed_texts(tokenizer, text, "(阿里, 总部在, 阿里")}
    assert b")" in {found[:1] for found in allowed_texts(tokenizer, text, "(阿里, 总部在, 杭州")}
    assert checked(tokenizer, walk(tokenizer, Copying(tokenizer, "甲甲", 60), random.Random(1), 60), "甲甲") == []


def test_a_name_in_quotation_marks_is_a_name(tokenizer):
    text = "李明创立了“星光”。"
    for tail in ("星光", "“星光”"):
        ids = chat.answer_ids(tokenizer, f"(李明, 创立, {tail})")
        rule = Copying(tokenizer, text, 200)
        assert all(ids[place] in rule(ids[:place]) for place in range(len(ids)))
    after = allowed_texts(tokenizer, text, "(李明, 创立, 星光)\n(李明, 创立, “星光”")
    assert b")" not in {found[:1] for found in after}  # the same triple


def test_too_little_room_is_said(tokenizer):
    with pytest.raises(ValueError, match="max_new_tokens=10 is too little for one triple: take at least"):
        Copying(tokenizer, TEXT, 10)
    only = Copying(tokenizer, "（", 10)  # nothing to copy: 无 is all there is to say
    assert checked(tokenizer, walk(tokenizer, only, random.Random(1), 10), "（") == []


# --- a text that is too long -------------------------------------------------------------------------------------

def test_only_what_the_model_reads_can_be_copied(tokenizer, wide_model):
    """What was cut from the middle is no choice; the rule gets the text of the prompt."""
    text = "李明在北京上班。" + "王五没有去成都。" * 60 + "赵六在深圳。"
    asked = []

    def copying(tokenizer, text, max_new_tokens):
        asked.append(text)
        return Copying(tokenizer, text, max_new_tokens)

    rows = [Sentence(0, text, ()), Sentence(1, "李明在北京上班。", ())]
    found = answering.answer_rows(wide_model, tokenizer, triplets.TASK, rows, "instruction", 400, 60, rule=copying)
    prompts = encoding.prompts(tokenizer, triplets.TASK, rows, 400, "instruction", 60)
    assert found.cut[0] > 20 and found.cut[1] == 0 and asked == [prompt.text for prompt in prompts]
    assert len(asked[0]) < len(text) / 2 and asked[0].startswith("李明在北京上班。") and asked[0].endswith("赵六在深圳。") and asked[1] == rows[1].text
    assert prompts[0].ids == chat.prompt_ids(tokenizer, triplets.messages(asked[0]))


# --- in the loop -------------------------------------------------------------------------------------------------

ROWS = [Sentence(number, text, ()) for number, text in enumerate(
    [TEXT, "李明在北京上班。", "公司总部在深圳，老板是王五。", "没有什么。", "赵六毕业于清水大学，现任副校长（主管教学）。", "天气"])]


@pytest.fixture
def wide_model(tokenizer, make_model):
    return make_model(vocab_size=len(tokenizer))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_model_that_knows_nothing_writes_answers_of_the_right_form(tokenizer, wide_model, batch_size):
    free = answering.answer_rows(wide_model, tokenizer, triplets.TASK, ROWS, "instruction", 512, 60, batch_size)
    bound = answering.answer_rows(wide_model, tokenizer, triplets.TASK, ROWS, "instruction", 512, 60, batch_size, rule=Copying)
    assert all(triplets.parse(text) is None for text in free.texts) and all(bound.stopped)
    for row, text in zip(ROWS, bound.texts):
        checked(tokenizer, chat.answer_ids(tokenizer, text), row.text)
    assert any("(" in text for text in bound.texts)


def test_it_is_the_most_probable_of_the_allowed_tokens_and_the_batch_does_not_matter(tokenizer, wide_model):
    rows = ROWS[:3]
    found = answering.answer_rows(wide_model, tokenizer, triplets.TASK, rows, "instruction", 512, 60, 3, rule=Copying).texts
    for row, text in zip(rows, found):
        ids, written, rule = chat.prompt_ids(tokenizer, triplets.messages(row.text)), [], Copying(tokenizer, row.text, 60)
        while not written or written[-1] not in chat.stop_ids(tokenizer):
            with torch.no_grad():
                logits = wide_model(input_ids=torch.tensor([ids + written])).logits[0, -1]
            written.append(max(rule(written), key=lambda number: logits[number]))
        assert generation.answer_text(tokenizer, written) == text


def test_a_new_relation_needs_no_other_change(tokenizer):
    relations = {**RELATIONS, "配偶": Relation("两人结婚", "人", "人")}
    ids = chat.answer_ids(tokenizer, "(张思源, 配偶, 青石)")
    rule = Copying(tokenizer, TEXT, 400, relations)
    assert all(number in rule(ids[:place]) for place, number in enumerate(ids))
