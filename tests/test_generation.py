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


def watched(model, monkeypatch):
    """The keyword arguments of every call of model.generate."""
    calls, real = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **options: calls.append(options) or real(**options))
    return calls


@pytest.mark.parametrize("batch_size", [1, 4, 25])
@pytest.mark.parametrize("kind", ["prompts", "apart"])
def test_a_batch_gives_what_one_by_one_gives(tokenizer, make_model, request, kind, batch_size):
    model, prompts = make_model(), request.getfixturevalue(kind)
    seen = []
    found = generation.generate(model, tokenizer, prompts, 12, batch_size, seen.append)
    assert found == [one_by_one(model, tokenizer, prompt, 12) for prompt in prompts]
    assert len(set(found)) > 3 and max(map(len, found)) > 5  # the case can tell a mistake
    assert seen == {1: [1, 2, 3, 4, 5, 6], 4: [4, 6], 25: [6]}[batch_size]


def test_padding_stands_left_of_the_prompts_own_tokens(tokenizer, make_model, prompts, apart, monkeypatch):
    model = make_model()
    calls = watched(model, monkeypatch)
    for given in (prompts, apart, prompts[:1]):
        generation.generate(model, tokenizer, given, 2)
        shared = chat.shared_prefix(given) if len(given) > 1 else 0
        ids, mask = calls[-1]["input_ids"], calls[-1]["attention_mask"]
        assert ids.shape[1] == max(map(len, given))
        for row, prompt in enumerate(sorted(given, key=len)):
            assert ids[row][mask[row].bool()].tolist() == prompt
            assert mask[row].tolist() == [1] * shared + [0] * (ids.shape[1] - len(prompt)) + [1] * (len(prompt) - shared)
    assert chat.shared_prefix(prompts) > 20 and "past_key_values" not in calls[-1]


def test_the_shared_prefix_is_computed_once(tokenizer, make_model, prompts):
    model, lengths = make_model(), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: lengths.append(args[0].numel()))
    generation.generate(model, tokenizer, prompts, 1, batch_size=2)
    shared = chat.shared_prefix(prompts)
    order = sorted(len(prompt) - shared for prompt in prompts)
    assert lengths == [shared, *(2 * width for width in order[1::2])]


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


def _small_memory(monkeypatch, fits):
    """Batches that do not `fit(prompts)` run out of memory; returns the batch sizes that were tried."""
    real, tried = generation._batch, []

    def batch(model, tokenizer, prefix, prompts, max_new_tokens):
        tried.append(len(prompts))
        if not fits(prompts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, tokenizer, prefix, prompts, max_new_tokens)
    monkeypatch.setattr(generation, "_batch", batch)
    return tried


def test_a_batch_that_does_not_fit_is_halved(tokenizer, make_model, prompts, monkeypatch, capsys):
    model = make_model()
    expected = generation.generate(model, tokenizer, prompts, 8)
    tried = _small_memory(monkeypatch, lambda batch: len(batch) < 3)
    assert generation.generate(model, tokenizer, prompts, 8) == expected
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "out of memory with 6 prompts at once: going on with 3" in capsys.readouterr().out


def test_a_prompt_that_does_not_fit_alone_is_shortened_or_given_up(tokenizer, make_model, prompts, monkeypatch):
    model = make_model()
    expected = generation.generate(model, tokenizer, prompts, 8)
    longest = max(range(6), key=lambda place: len(prompts[place]))
    _small_memory(monkeypatch, lambda batch: max(map(len, batch)) < len(prompts[longest]))
    with pytest.raises(torch.OutOfMemoryError):
        generation.generate(model, tokenizer, prompts, 8)
    asked, other = [], prompts[(longest + 1) % 6]
    found = generation.generate(model, tokenizer, prompts, 8, shorter=lambda place: asked.append(place) or other)
    assert asked == [longest] and found[longest] == expected[(longest + 1) % 6]
    assert found[:longest] + found[longest + 1:] == expected[:longest] + expected[longest + 1:]
    found = generation.generate(model, tokenizer, prompts, 8, shorter=lambda place: None)
    assert found[longest] is None and found.count(None) == 1
    monkeypatch.setattr(generation, "_batch", lambda *args: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
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
