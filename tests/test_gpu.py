"""What only GPUs can show: packs by FlashAttention equal packs by mask, in 16 bit, forwards and backwards, compiled or not; DDP and FSDP."""

import json
import os
import subprocess
import sys

import pytest
import torch
import two_processes

from glmlab import bench, chat, memory, models, packing, paths, runs, scoring

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


# --- two GPUs ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{"one", "ddp", "fsdp": the folder that `two_processes` filled on one GPU, on two, and on two that share the weights}."""
    folder, settings = tmp_path_factory.mktemp("gpus"), paths.notebooks("settings", "accelerate", "fsdp.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    ways = {"one": [sys.executable], "ddp": [*launch, "--multi_gpu"], "fsdp": [*launch, "--config_file", str(settings)]}
    for name, way in ways.items():
        gpus = {"CUDA_VISIBLE_DEVICES": "0"} if name == "one" else {}
        done = subprocess.run([*way, two_processes.__file__, "gpu", str(folder / name)], env={**os.environ, **gpus, "PYTHONPATH": str(paths.ROOT)}, capture_output=True, text=True,
                              cwd=paths.ROOT, timeout=500)
        assert done.returncode == 0, done.stderr[-5000:]
    return {name: folder / name for name in ways}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("run, off", [("gpu-float32", 2e-5), ("gpu-4bit", 0.05)])
def test_two_gpus_compute_what_one_computes(trained, way, run, off):
    """Every step's gradient; the saved adapter gives the loss that the log says. off: relative, of float32 and of bf16 arithmetic."""
    one, two = (torch.load(trained[name] / f"{run}.pt", map_location="cpu") for name in ("one", way))
    assert two["samples"] == one["samples"] and len(one["gradients"]) == 3
    distances = [_distance(found, wanted) for found, wanted in zip(two["gradients"], one["gradients"], strict=True)]
    print(way, run, "gradients off by", [f"{distance:.1e}" for distance in distances])
    assert max(distances) <= off
    folder = trained[way] / "data" / "runs" / run
    record, log = json.loads((folder / "run.json").read_text(encoding="utf-8")), runs.read_log(folder)
    assert (record["processes"], record["sharded"]) == (2, way == "fsdp")
    model, tokenizer = models.load_finetuned("glm4-tiny", folder / "checkpoint-3", "nf4" if run == "gpu-4bit" else "none",
                                             record["dtype"], "cuda")
    dev = two_processes.samples(tokenizer, 10)[5:]
    with torch.no_grad():
        loss = packing.loss_sum(model, packing.to(packing.pack(dev, chat.shared_prefix(dev)), "cuda")).item() / sum(map(packing.labelled, dev))
    assert loss == pytest.approx(log[-1]["eval_loss"], rel=off)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_on_two_gpus_goes_on(trained, way):
    """With dropout: the losses of the run in one piece, up to sums whose order a GPU does not fix."""
    whole, again = ([entry["loss"] for entry in runs.read_log(trained[way] / "data" / "runs" / name)] for name in ("whole", "interrupted"))
    assert len(whole) == 4 and again == pytest.approx(whole, rel=0.02)
