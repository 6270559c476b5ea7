"""The label trie gives what scoring every label one by one gives, in one forward pass a pack."""

import numpy as np
import pytest
import torch

from glmlab import chat, scoring

NAMES = ["咨询（含查询）业务规定", "办理取消", "咨询（含查询）账户信息", "咨询（含查询）产品/业务功能", "办理开通", "投诉（含抱怨）网络问题"]
ANSWERS = [f"意图：{number}：{name}" for number, name in zip((0, 1, 6, 10, 16, 106), NAMES)]
CALLS = ["您好请讲 我想查一下话费", "帮我把套餐取消吧 我不用了", "您好", "怎么多扣了二十块钱 " * 3, "好的先生 我帮您看一下"]


@pytest.fixture
def prompts(tokenizer):
    system = {"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}
    return [chat.prompt_ids(tokenizer, [system, {"role": "user", "content": "对话：" + call}]) for call in CALLS]


def one_by_one(model, tokenizer, prompts):
    """The definition, label by label, without trie, cache or packs: a factor for every place where another answer could go on."""
    encoded = [chat.answer_ids(tokenizer, answer) for answer in ANSWERS]
    rows = np.ones((len(prompts), len(ANSWERS)))
    for row, prompt in enumerate(prompts):
        for label, ids in enumerate(encoded):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1:]
            for depth, token in enumerate(ids):
                allowed = sorted({other[depth] for other in encoded if other[:depth] == ids[:depth]})
                rows[row, label] *= torch.softmax(logits[depth, allowed].double(), -1)[allowed.index(token)].item()
    return rows


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equal_to_scoring_label_by_label(tokenizer, make_lora, prompts, batch_tokens, attention):
    model = make_lora(lora_dropout=0.5).train()  # scoring must switch to eval itself, and back
    model.base_model.model.set_attn_implementation(attention)
    seen = []
    found = scoring.score(model, tokenizer, prompts, ANSWERS, batch_tokens=batch_tokens, progress=seen.append)
    assert model.training
    expected = one_by_one(model.eval(), tokenizer, prompts)
    assert np.abs(found - expected).max() < 1e-5 and (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found.sum(1) - 1).max() < 1e-12
    assert len(set(expected.argmax(1))) > 1 and expected.max() < 0.999  # the case can tell a mistake
    assert seen == {1: [1, 2, 3, 4, 5], 100_000: [5]}.get(batch_tokens, seen) and seen[-1] == 5


def test_no_shared_prefix_and_a_short_one(tokenizer, make_model, prompts):
    model = make_model()
    expected = one_by_one(model, tokenizer, prompts)
    for prefix_len in (0, 1, 5):
        assert np.abs(scoring.score(model, tokenizer, prompts, ANSWERS, prefix_len) - expected).max() < 1e-5
    with pytest.raises(ValueError, match="prompt 1 does not share a prefix"):
        scoring.score(model, tokenizer, prompts, ANSWERS, len(prompts[0]) - 1)


def test_trie_feeds_only_what_leads_to_a_branching():
    # 7 forced; branching at [7] between 1 and 2; after [7, 1] forced 5, then a branching between 3 and 4; after [7, 2] nothing to decide
    trie = scoring.label_trie([[7, 1, 5, 3, 9], [7, 1, 5, 4, 9], [7, 2, 5, 3, 9]])
    assert trie.fed == [(7, 0), (1, 1), (5, 2)] and trie.branchings == [1, 3]
    assert trie.edges == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert trie.paths.tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]]
    logits = torch.zeros(1, 2, 10)
    logits[0, 0, 1], logits[0, 1, 3] = np.log(3), np.log(4)
    logits[0, :, 8] = 50  # a token no answer has here must not take part
    assert np.allclose(scoring.posterior(logits, trie), [[0.75 * 0.8, 0.75 * 0.2, 0.25]])


def test_branching_at_the_first_token():
    trie = scoring.label_trie([[1, 9], [2, 9]])
    assert trie.fed == [] and trie.branchings == [0]


def test_a_pack_that_does_not_fit_is_halved(tokenizer, make_model, prompts, monkeypatch):
    model, real, tried = make_model(), scoring._score_pack, []
    expected = scoring.score(model, tokenizer, prompts, ANSWERS)

    def small_memory(model, prefix, prefix_len, suffixes, *rest):
        tried.append(len(suffixes))
        if len(suffixes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, prefix, prefix_len, suffixes, *rest)

    monkeypatch.setattr(scoring, "_score_pack", small_memory)
    assert np.abs(scoring.score(model, tokenizer, prompts, ANSWERS) - expected).max() < 1e-6
    assert tried == [5, 2, 3, 1, 2]
    monkeypatch.setattr(scoring, "_score_pack", lambda *args: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scoring.score(model, tokenizer, prompts, ANSWERS)


def test_equal_answers_are_refused(tokenizer, make_model, prompts):
    with pytest.raises(ValueError, match="at least two different answers"):
        scoring.score(make_model(), tokenizer, prompts, [ANSWERS[0], ANSWERS[0]])
