"""What several tests share: a small GLM-4 tokenizer and a tiny random GLM-4, made in a second and never downloaded."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

SENTENCES = [
    "您好请讲 我想查一下这个月的话费 怎么多扣了二十块钱", "好的先生我帮您看一下 您这边开通了一个流量包", "意图：6：咨询（含查询）账户信息",
    "意图：10：咨询（含查询）产品/业务功能", "意图：1：办理取消", "意图：16：咨询（含查询）服务渠道信息", "对话：您好 请问有什么可以帮您",
    "你是电信客服质检员。输入是一通电话，输出它的意图。", "You are helpful. Hello, it was created in 1998!", "帮我把套餐取消吧 我不用了",
]


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of 640 ids with GLM-4's special tokens and the course's chat template."""
    from glmlab.tiny.tokenizer import train_tokenizer
    return train_tokenizer(SENTENCES * 3, 640)


@pytest.fixture(scope="session")
def family(tokenizer):
    """{generation: a small tokenizer of its kind}."""
    from itertools import islice

    from glmlab.chatglm.tiny_vocab import tiny_glm_tokenizer, tiny_v1_tokenizer
    from glmlab.tiny import corpus
    texts = [*SENTENCES, *(corpus.plain_text(document) for _, document in islice(corpus.documents(1), 200))]
    return {"chatglm": tiny_v1_tokenizer(texts, 1500), "chatglm2": tiny_glm_tokenizer(texts, 1500, roles=False),
            "chatglm3": tiny_glm_tokenizer(texts, 1500), "glm4": tokenizer}


@pytest.fixture
def make_model(tokenizer):
    """`make_model(**config)`: a random Glm4ForCausalLM (2 layers, hidden 64) in float32, the same weights every time."""
    import torch
    from transformers import Glm4Config, Glm4ForCausalLM

    def make(**config):
        torch.manual_seed(3)
        sizes = dict(vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=32, attention_bias=True, max_position_embeddings=2048,
                     pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        model = Glm4ForCausalLM(Glm4Config(**(sizes | config)))
        with torch.no_grad():  # the default initialisation is so small that attention hardly matters
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(6)
        return model.eval()

    return make


@pytest.fixture
def make_lora(make_model):
    """`make_lora(**lora settings)`: the tiny model with a LoRA adapter whose B matrices are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    def make(**settings):
        torch.manual_seed(5)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
        model = get_peft_model(make_model(), LoraConfig(**(dict(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM") | settings)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        return model

    return make
