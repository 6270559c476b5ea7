"""ChatGLM-6B, which reads its prompts both ways, through the same packing, scoring, generation and training as the other generations."""

import numpy as np
import pytest
import torch

from glmlab import chat, generation, packing, scoring
from glmlab.chatglm.v1 import ChatGLMConfig, ChatGLMForCausalLM

ASKED = ["您好请讲 我想查一下话费", "帮我把套餐取消吧", "您好 怎么多扣了二十块钱 帮我看一下", "好"]
ANSWERS = ["意图：6：咨询（含查询）账户信息", "意图：1：办理取消", "意图：10：咨询（含查询）产品/业务功能", "意图：16"]


@pytest.fixture
def two_way_tokenizer(family):
    return family["chatglm"]


@pytest.fixture
def make(two_way_tokenizer):
    """`make()`: a random ChatGLM-6B of two layers, the same weights every time, with a LoRA adapter that is not zero."""
    from peft import LoraConfig, get_peft_model
    marker, start = chat.two_way(two_way_tokenizer)

    def model(lora: bool = True):
        torch.manual_seed(3)
        found = ChatGLMForCausalLM(ChatGLMConfig(
            vocab_size=1536, hidden_size=64, inner_hidden_size=128, num_layers=2, num_attention_heads=2, max_sequence_length=512,
            pad_token_id=3, bos_token_id=start, gmask_token_id=marker, mask_token_id=two_way_tokenizer.convert_tokens_to_ids("[MASK]"),
            eos_token_id=chat.end_id(two_way_tokenizer), initializer_range=0.2)).eval()
        with torch.no_grad():  # or it would write <sop> after <sop> for ever: head and embedding are one
            found.get_input_embeddings().weight[two_way_tokenizer.all_special_ids] *= 0.05
        if not lora:
            return found
        found = get_peft_model(found, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM",
                                                 target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]))
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        return found

    return model


@pytest.fixture
def samples(two_way_tokenizer):
    return [chat.encode_sample(two_way_tokenizer, [{"role": "system", "content": "输出意图"}, {"role": "user", "content": asked},
                                                   {"role": "assistant", "content": answer}]) for asked, answer in zip(ASKED, ANSWERS)]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_packs_and_padded_batches_equal_the_samples_alone(make, two_way_tokenizer, samples, attention, layout):
    model, two_way = make().double(), chat.two_way(two_way_tokenizer)
    model.base_model.model.set_attn_implementation(attention)
    batch = packing.pack(samples, two_way=two_way) if layout == "packed" else packing.pad(samples, 3, two_way=two_way)
    together = packing.loss_sum(model, batch)
    found = gradients(model, together)
    alone = sum(torch.nn.functional.cross_entropy(model(input_ids=torch.tensor([sample.ids])).logits[0, :-1],
                                                  torch.tensor(sample.labels[1:]), reduction="sum") for sample in samples)
    wanted = gradients(model, alone)
    assert abs(together - alone) <= 1e-7 * abs(alone) and len(wanted) == 16 and found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.norm() > 1e-4 and (gradient - found[name]).norm() <= 1e-6 * gradient.norm(), name


def test_a_pack_without_its_markers_or_with_a_shared_prefix_is_refused(two_way_tokenizer, samples):
    two_way = chat.two_way(two_way_tokenizer)
    with pytest.raises(ValueError, match="share nothing"):
        packing.pack(samples, 2, two_way=two_way)
    broken = chat.Sample([token for token in samples[0].ids if token != two_way[1]], 3)
    with pytest.raises(ValueError, match="needs .gMASK. and <sop>"):
        packing.pack([broken], two_way=two_way)


def test_the_pack_shows_each_prompt_both_ways(two_way_tokenizer, samples):
    batch = packing.pack(samples[:2], two_way=chat.two_way(two_way_tokenizer))
    seen = packing.token_mask(batch["family"], batch["segments"], batch["opened"])
    first, prompt = len(samples[0].ids), samples[0].labels_from - 1  # <sop> is the first that is read one way
    assert seen[:first, :prompt].all() and not seen[:first, first:].any() and not seen[first:, :first].any()
    assert torch.equal(seen[prompt:first, prompt:first], torch.ones(first - prompt, first - prompt).tril().bool())
    assert batch["position_ids"][0, :, prompt - 2 : prompt + 2].tolist() == [[prompt - 2, prompt - 1, prompt - 1, prompt - 1], [0, 0, 1, 2]]


def test_labels_are_scored_as_each_answer_alone(make, two_way_tokenizer, samples):
    model = make(lora=False)
    prompts = [sample.ids[: sample.labels_from] for sample in samples]
    found = scoring.score(model, two_way_tokenizer, prompts, ANSWERS, batch_tokens=60)
    trie = scoring.label_trie([chat.answer_ids(two_way_tokenizer, answer) for answer in ANSWERS])
    paths = {0: ()}
    for node, (token, parent) in enumerate(trie.fed, 1):
        paths[node] = (*paths[parent], token)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = torch.stack([model(input_ids=torch.tensor([[*prompt, *paths[node]]])).logits[0, -1] for node in trie.branchings])
        assert np.abs(scoring.posterior(logits[None], trie)[0] - found[row]).max() < 1e-5


def test_batched_answers_equal_each_prompt_alone(make, two_way_tokenizer, samples):
    model = make(lora=False)
    prompts = [sample.ids[: sample.labels_from] for sample in samples]
    together = generation.generate(model, two_way_tokenizer, prompts, 8, batch_size=4)
    assert together == [generation.generate(model, two_way_tokenizer, [prompt], 8)[0] for prompt in prompts] and len(set(together)) > 1
    streamed = "".join(generation.stream(model, two_way_tokenizer, [{"role": "system", "content": "输出意图"}, {"role": "user", "content": ASKED[1]}], 8))
    assert streamed.strip() == together[1]
