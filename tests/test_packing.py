"""Packs compute what the unpacked samples compute: loss, every gradient, and nobody sees anybody else."""

import pytest
import torch

from glmlab import chat, packing

CALLS = [("您好请讲 我想查一下话费", "意图：6：咨询（含查询）账户信息"), ("帮我把套餐取消吧", "意图：1：办理取消"),
         ("您好 怎么多扣了二十块钱 帮我看一下", "意图：10"), ("好", "意图：16：咨询（含查询）服务渠道信息")]


@pytest.fixture
def samples(tokenizer):
    def messages(call, answer):
        return [{"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}, {"role": "user", "content": "对话：" + call},
                {"role": "assistant", "content": answer}]
    return [chat.encode_sample(tokenizer, messages(*call)) for call in CALLS]


def _alone(model, samples, weigh):
    """The definition, without any of packing.py: every sample by itself through the plain forward."""
    total = 0.0
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
        labels = torch.tensor(sample.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum") * weigh(sample)
    return total


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _assert_equal(one, two):
    (loss1, grads1), (loss2, grads2) = one, two
    assert abs(loss1 - loss2) <= 1e-6 * abs(loss1)
    assert set(grads1) == set(grads2) and len(grads1) == 24  # 2 layers x 6 matrices x A, B
    for name in grads1:
        assert grads1[name].norm() > 1e-4, name
        assert (grads1[name] - grads2[name]).norm() <= 2e-6 * grads1[name].norm(), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["shared", "short prefix", "block-diagonal", "padded"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_loss_and_gradients_equal_the_unpacked_samples(tokenizer, make_lora, samples, attention, layout, per_sample):
    model = make_lora().double()  # the layouts themselves, without rounding; float32 below
    model.base_model.model.set_attn_implementation(attention)
    prefix = {"shared": chat.shared_prefix(samples), "short prefix": 3, "block-diagonal": 0}.get(layout)
    assert prefix is None or layout != "shared" or prefix > 20
    batch = packing.pad(samples, tokenizer.pad_token_id, per_sample) if layout == "padded" else packing.pack(samples, prefix, per_sample)
    loss = packing.loss_sum(model, batch)
    packed = loss.item(), _gradients(model, loss)
    loss = _alone(model, samples, lambda sample: 1 / (len(sample.ids) - sample.labels_from) if per_sample else 1.0)
    _assert_equal((loss.item(), _gradients(model, loss)), packed)
    count = len(samples) if per_sample else sum(len(s.ids) - s.labels_from for s in samples)
    assert abs(batch["weights"].sum().item() - count) < 1e-5


def test_float32_equals_the_padded_batch(tokenizer, make_lora, samples):
    model = make_lora()
    losses = [packing.loss_sum(model, batch) for batch in
              (packing.pad(samples, tokenizer.pad_token_id), packing.pack(samples, chat.shared_prefix(samples)))]
    _assert_equal(*[(loss.item(), _gradients(model, loss)) for loss in losses])


def test_a_changed_sample_never_moves_another(make_model, samples):
    model, prefix = make_model(), chat.shared_prefix(samples)
    changed = chat.Sample([*samples[1].ids[: prefix + 1], *[i ^ 1 for i in samples[1].ids[prefix + 1:]]], samples[1].labels_from)
    with torch.no_grad():
        one = packing.pack(samples, prefix)
        two = packing.pack([samples[0], changed, *samples[2:]], prefix)
        before, after = packing.label_logits(model, one), packing.label_logits(model, two)
    others = one["sample"] != 1
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[~others], after[~others], atol=1e-2)


def test_layout(samples):
    prefix = chat.shared_prefix(samples)
    batch = packing.pack(samples, prefix)
    own = [len(s.ids) - prefix for s in samples]
    assert batch["input_ids"].shape == (1, prefix + sum(own))
    assert batch["position_ids"][0].tolist() == [*range(prefix), *(p for n in own for p in range(prefix, prefix + n))]
    assert batch["labels"].tolist() == [i for s in samples for i in s.ids[s.labels_from:]]
    assert batch["keep"].sum() == len(batch["labels"]) == len(batch["sample"])
    seen = packing.token_mask(batch["family"], batch["segments"])
    second = prefix + own[0]  # first own token of the second sample
    assert seen[second].nonzero().flatten().tolist() == [*range(prefix), second]


def test_tree_of_three_generations():
    tree = packing.Tree(start=2)
    root = tree.add([10, 11])
    child = tree.add([12], root)
    tree.add([13], root)
    tree.add([14, 15], child)
    assert tree.positions == [2, 3, 4, 4, 5, 6]
    assert tree.mask().int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0],
                                          [1, 1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 1, 1]]


def test_dropout_is_drawn_once_for_the_shared_tokens(make_lora, samples):
    """Twice the same sample in one pack: with dropout only in front of the shared tokens' LoRA they stay equal."""
    model = make_lora(lora_dropout=0.5).train()
    twins = [samples[0], samples[0]]
    prefix = samples[0].labels_from - 1
    torch.manual_seed(0)
    drawn = []
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.lora_dropout["default"]
    layer.register_forward_hook(lambda module, args, out: drawn.append(args[0].shape[1]))
    packing.loss_sum(model, packing.pack(twins, prefix))
    assert drawn == [prefix + 2 * (len(samples[0].ids) - prefix)]  # one draw over the prefix, one over each sample's own tokens


def test_wrong_prefix_is_refused(samples):
    with pytest.raises(ValueError, match="sample 1 of the pack does not share a prefix"):
        packing.pack(samples, chat.shared_prefix(samples) + 3)
    with pytest.raises(ValueError, match="sample 0 of the pack"):
        packing.pack(samples[:1], samples[0].labels_from)
