"""Batched answers are the answers one by one; stop ids, memory, and a stream that never hangs."""

import pytest
import torch
from transformers import GenerationConfig

from glmlab import chat, generation

CALLS = ["您好请讲 我想查一下话费", "帮我把套餐取消吧 我不用了", "好", "怎么多扣了二十块钱 " * 6, "好的先生 我帮您看一下", "流量包 取消"]
SYSTEM = {"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}


@pytest.fixture
def prompts(tokenizer):
    return [chat.prompt_ids(tokenizer, [SYSTEM, {"role": "user", "content": "对话：" + call}]) for call in CALLS]


@pytest.fixture
def apart(tokenizer):
    """Prompts that share nothing but what every sequence begins with."""
    return [chat.prompt_ids(tokenizer, [{"role": role, "content": call}]) for role, call in zip(["user", "system"] * 3, CALLS)]


def one_by_one(model, tokenizer, prompt, new_tokens):
    """The definition: the most probable next token, again and again, without cache, padding or `generate`."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in chat.stop_ids(tokenizer):
                break
    return generation.answer_text(tokenizer, ids[len(prompt):])


@pytest.mark.parametrize("batch_size", [1, 4, 25])
@pytest.mark.parametrize("kind", ["prompts", "apart"])
def test_a_batch_gives_what_one_by_one_gives(tokenizer, make_model, request, kind, batch_size):
    model, prompts = make_model(), request.getfixturevalue(kind)
    seen = []
    found = generation.generate(model, tokenizer, prompts, 12, batch_size, seen.append)
    assert found == [one_by_one(model, tokenizer, prompt, 12) for prompt in prompts]
    assert len(set(found)) > 3 and max(map(len, found)) > 5  # the case can tell a mistake
    assert seen == {1: [1, 2, 3, 4, 5, 6], 4: [4, 6], 25: [6]}[batch_size]


def test_the_shared_prefix_is_computed_once_and_nothing_is_padded(tokenizer, make_model, prompts):
    model, lengths = make_model(), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: lengths.append(args[0].numel()))
    generation.generate(model, tokenizer, prompts, 1, batch_size=2)
    shared = chat.shared_prefix(prompts)
    own = sorted(len(prompt) - shared for prompt in prompts)
    assert shared > 20 and lengths == [shared, *(first + second for first, second in zip(own[::2], own[1::2]))]


def test_the_facts_of_an_answer(tokenizer, make_model, prompts, monkeypatch):
    model, seen = make_model(), []
    stop = tokenizer.encode(generation.generate(model, tokenizer, prompts[:1], 12)[0])[3]
    monkeypatch.setattr(chat, "stop_ids", lambda tokenizer: {stop})
    found = generation.generate_facts(model, tokenizer, prompts, 12, 4, seen.append)
    assert [answer.text for answer in found] == generation.generate(model, tokenizer, prompts, 12) and seen[-1] == 6
    for prompt, answer in zip(prompts, found):
        short = generation.generate_facts(model, tokenizer, [prompt], answer.tokens)[0]
        assert short.text == answer.text and short.stopped == answer.stopped == (answer.tokens < 12)
        if answer.tokens > 1:
            assert not generation.generate_facts(model, tokenizer, [prompt], answer.tokens - 1)[0].stopped
        assert 0 < answer.first_token_seconds <= answer.seconds < 10
    assert {answer.stopped for answer in found} == {True, False}


def test_a_prompt_too_long_for_the_model_is_refused(tokenizer, make_model, prompts):
    model = make_model(max_position_embeddings=60)
    with pytest.raises(ValueError, match="more than the limit of 60"):
        generation.generate(model, tokenizer, prompts, 20)
    assert not model.training


def _emits(model, token, after):
    """Make a model write `token` as its n-th new token, whatever it would say."""
    steps = []

    def push(module, args, logits):
        steps.append(1)
        if len(steps) == after:
            logits[:, -1, token] = 1e4
        return logits
    model.lm_head.register_forward_hook(push)
    return steps


@pytest.mark.parametrize("stop", ["<|user|>", "<|observation|>", "<|endoftext|>"])
def test_every_stop_id_ends_an_answer(tokenizer, make_model, prompts, stop):
    model = make_model()
    whole = generation.generate(model, tokenizer, prompts[:1], 10)[0]
    steps = _emits(model, tokenizer.convert_tokens_to_ids(stop), after=4)
    cut = generation.generate(model, tokenizer, prompts[:1], 10)[0]
    assert len(steps) == 4 and whole.startswith(cut) and 0 < len(cut) < len(whole)


def test_answer_text(tokenizer):
    ids = chat.answer_ids(tokenizer, "意图：1：办理取消")
    assert generation.answer_text(tokenizer, [*ids, *chat.answer_ids(tokenizer, "再说")]) == "意图：1：办理取消"
    assert generation.answer_text(tokenizer, ids[:-1]) == "意图：1：办理取消"
    assert generation.answer_text(tokenizer, ids[-1:]) == ""


def test_greedy_whatever_the_base_asks_for_and_without_dropout(tokenizer, make_lora, prompts, recwarn):
    model = make_lora(lora_dropout=0.5).eval()
    expected = [one_by_one(model, tokenizer, prompt, 12) for prompt in prompts]
    model.base_model.model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.8, repetition_penalty=5.0,
                                                                no_repeat_ngram_size=2, num_beams=2)
    model.train()
    assert generation.generate(model, tokenizer, prompts, 12) == expected
    assert model.training and not any("generation flags" in str(warning.message) for warning in recwarn)


def _small_memory(model, fits):
    """Passes of (rows, tokens) that do not fit run out of memory; returns those that were tried."""
    tried = []

    def check(module, args):
        tried.append(tuple(args[0].shape))
        if not fits(*tried[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory")
    model.model.embed_tokens.register_forward_pre_hook(check)
    return tried


def test_a_batch_that_does_not_fit_is_halved(tokenizer, make_model, prompts, capsys):
    model = make_model()
    expected = generation.generate(model, tokenizer, prompts, 8)
    tried = _small_memory(model, lambda rows, tokens: rows < 3)
    assert generation.generate(model, tokenizer, prompts, 8) == expected
    assert [rows for rows, _ in tried].count(6) == 1 and max(rows for rows, _ in tried[3:]) == 3
    assert capsys.readouterr().out.splitlines() == [f"out of memory with {tried} prompts at once: going on with {then}" for tried, then in
                                                    ((6, 3), (3, 1))]


def test_a_prompt_that_does_not_fit_alone_is_shortened_or_given_up(tokenizer, make_model, prompts):
    model = make_model()
    expected = generation.generate(model, tokenizer, prompts, 8)
    longest = max(range(6), key=lambda place: len(prompts[place]))
    own = len(prompts[longest]) - chat.shared_prefix(prompts)
    _small_memory(model, lambda rows, tokens: tokens < own)
    with pytest.raises(torch.OutOfMemoryError):
        generation.generate(model, tokenizer, prompts, 8)
    asked, other = [], prompts[(longest + 1) % 6]
    found = generation.generate(model, tokenizer, prompts, 8, shorter=lambda place: asked.append(place) or other)
    assert asked == [longest] and found[longest] == expected[(longest + 1) % 6]
    assert found[:longest] + found[longest + 1:] == expected[:longest] + expected[longest + 1:]
    found = generation.generate(model, tokenizer, prompts, 8, shorter=lambda place: None)
    assert found[longest] is None and found.count(None) == 1
    model.lm_head.register_forward_hook(lambda *args: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        generation.generate(model, tokenizer, prompts, 8, shorter=lambda place: None)


def test_no_prompts(tokenizer, make_model):
    assert generation.generate(make_model(), tokenizer, []) == []


def test_stream_gives_the_answer_in_pieces_and_raises_what_failed(tokenizer, make_model):
    model = make_model().train()
    messages = [SYSTEM, {"role": "user", "content": "对话：" + CALLS[0]}]
    whole = generation.generate(model, tokenizer, [chat.prompt_ids(tokenizer, messages)], 20)[0]
    pieces = list(generation.stream(model, tokenizer, messages, 20))
    assert "".join(pieces).strip() == whole and len(pieces) > 2
    model.lm_head.register_forward_hook(lambda *args: (_ for _ in ()).throw(RuntimeError("broken head")))
    with pytest.raises(RuntimeError, match="broken head"):
        list(generation.stream(model, tokenizer, messages, 20))
