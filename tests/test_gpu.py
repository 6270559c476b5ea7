"""What only a GPU can show: packs by FlashAttention equal packs by mask, in 16 bit, forwards and backwards, compiled or not."""

import pytest
import torch

from glmlab import bench, chat, memory, packing, scoring

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def _glm4(dtype=torch.bfloat16, **config):
    from transformers import Glm4Config, Glm4ForCausalLM
    torch.manual_seed(3)
    model = Glm4ForCausalLM(Glm4Config(vocab_size=640, hidden_size=512, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8,
                                       num_key_value_heads=2, head_dim=64, attention_bias=True, pad_token_id=0, eos_token_id=1, **config))
    return _spread(model).to("cuda", dtype)


def _chatglm(dtype=torch.bfloat16, **config):
    from glmlab.chatglm import v1
    torch.manual_seed(3)
    config = v1.ChatGLMConfig(hidden_size=512, num_layers=3, num_attention_heads=8, inner_hidden_size=1024, vocab_size=640, bos_token_id=604,
                              eos_token_id=605, gmask_token_id=601, mask_token_id=600, pad_token_id=3, max_sequence_length=2048, **config)
    return _spread(v1.ChatGLMForCausalLM(config)).to("cuda", dtype)


def _spread(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return model.eval()


def _gradients(model, batches):
    """(loss, {name: gradient in 32 bit}), the mean over all labelled tokens."""
    model.zero_grad()
    count = sum(batch["weights"].sum().item() for batch in batches)
    losses = []
    for batch in batches:
        loss = packing.loss_sum(model, packing.to(batch, "cuda")) / count
        loss.backward()
        losses.append(loss.item())
    return sum(losses), {name: parameter.grad.float().clone() for name, parameter in model.named_parameters()}


def _distance(found, wanted) -> float:
    return (sum((found[name] - wanted[name]).square().sum() for name in wanted) / sum(grad.square().sum() for grad in wanted.values())).sqrt().item()


@pytest.mark.parametrize("make, ends", [(_glm4, None), (_chatglm, (601, 604))], ids=["GLM-4", "ChatGLM-6B"])
def test_packs_are_no_further_from_float32_than_plain_samples(make, ends):
    samples = bench.call_like_samples(9, 120, 590, two_way=ends)
    prefix = 0 if ends else chat.shared_prefix(samples)
    alone = [packing.pad([sample], 0, two_way=ends) for sample in samples]
    loss, exact = _gradients(make(torch.float32), alone)
    model = make()
    plain_loss, plain = _gradients(model, alone)
    pack_loss, packed = _gradients(model, [packing.pack(samples, prefix, two_way=ends)])
    assert model.config._attn_implementation == "flash_varlen"
    assert abs(pack_loss - loss) <= 1.5 * abs(plain_loss - loss) + 1e-3 * loss
    assert _distance(packed, exact) <= 1.2 * _distance(plain, exact)


def test_compiled_layers_are_the_same_and_not_compiled_anew():
    model = _glm4()
    packs = [packing.pack(bench.call_like_samples(count, 120, 600, seed=count), 120) for count in (5, 8, 6, 9, 4)]
    wanted = [packing.loss_sum(model, packing.to(pack, "cuda")).item() for pack in packs]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    memory.compile_layers(model)
    found = [packing.loss_sum(model, packing.to(pack, "cuda")).item() for pack in packs[:3]]
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found += [packing.loss_sum(model, packing.to(pack, "cuda")).item() for pack in packs[3:]]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert found == pytest.approx(wanted, rel=5e-3)


def test_scores_behind_a_cached_prefix_equal_those_one_by_one():
    model = _glm4()
    prompts = [sample.ids[: sample.labels_from] for sample in bench.call_like_samples(12, 120, 500)]
    answers = [[600, 601, number % 10 + 610, *([number // 10 + 620] if number > 9 else []), 602] for number in range(20)]
    together = scoring.score_ids(model, prompts, answers, 120, 2000)
    alone = scoring.score_ids(_glm4(torch.float32), prompts, answers, 0, 1)
    assert abs(together - alone).max() < 0.05 and (together.argmax(1) == alone.argmax(1)).mean() > 0.9
