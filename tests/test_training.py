"""Training: the loss it minimises, exact resume, what a run folder holds, and what is said when something goes wrong."""

import errno
import gc
import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file

from glmlab import chat, memory, models, paths, runs, trainer, training
from glmlab.parameters import TrainSettings

ANSWERS = ["意图：6：咨询（含查询）账户信息", "意图：1：办理取消", "意图：10", "意图：16：咨询（含查询）服务渠道信息", "意图：7"]
TURNS = ["您好请讲", "我想查一下话费", "帮我把套餐取消吧", "怎么多扣了二十块钱", "好的先生", "流量包", "我不用了"]
SOURCE = {"train": {"file": "data/train.csv", "sha256": "ab" * 32, "rows": 20}}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection():
    """accelerate collects garbage at the start of every training: 0.4 s over the imported libraries, unless they are frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


SIX = "q_proj,k_proj,v_proj,o_proj,gate_up_proj,down_proj"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path / "home"))


@pytest.fixture
def make_base(tmp_path, make_model, tokenizer):
    """`make_base(**config)`: a tiny GLM-4 on disk, as users have it."""
    def make(name="tiny", **config):
        make_model(**config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)
    return make


@pytest.fixture
def samples(tokenizer):
    """20 training samples and 6 others, answers of unequal length."""
    def encode(number):
        call = " ".join(TURNS[(number * step) % 7] for step in range(1, 3 + number % 4))
        return chat.encode_sample(tokenizer, [
            {"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}, {"role": "user", "content": f"对话：{call} {number}"},
            {"role": "assistant", "content": ANSWERS[number % 5]}])
    encoded = [encode(number) for number in range(26)]
    return encoded[:20], encoded[20:]


@pytest.fixture
def settings(make_base):
    """`settings(**changes)`: a short run in float32 without quantisation."""
    base = make_base()

    def make(**changes):
        short = dict(run="t", base=base, method="lora", rank=4, alpha=8, dropout=0.0, learning_rate=5e-3, warmup_steps=1, steps=6,
                     checkpoint_steps=2, eval_steps=0, batch_size=4, dtype="fp32", layers=0, target_modules=SIX)
        return TrainSettings(**(short | changes))
    return make


@pytest.fixture
def run(samples):
    """`run(settings)` trains in what might be a new process: a model of its own. Returns the run folder; the lines go to `lines`."""
    def go(settings, source=SOURCE, lines=None, train=samples[0], dev=samples[1], log=None):
        model, tokenizer = training.prepare(settings)
        return training.train(settings, model, tokenizer, train, dev, source, log=log or (lines if lines is not None else []).append)
    return go


def _trainer(chosen, samples):
    """The model and the Trainer that a run with these settings gets."""
    model, tokenizer = training.prepare(chosen)
    record = runs.describe(chosen, model, tokenizer, *samples, {})
    return model, training._trainer(chosen, model, tokenizer, *samples, paths.runs("t"), record, print)


def _weights(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors")


def _assert_same(one, two):
    assert one.keys() == two.keys() and len(one) == 24  # 2 layers x 6 matrices x A, B
    for name in one:
        assert torch.equal(one[name], two[name]), name


def _losses(folder):
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("grad_norm")) for entry in training.read_log(folder)]


def _stop_at(step):
    """A log that is interrupted like a notebook cell, at a step."""
    def log(line):
        if re.match(rf"step +{step}/", line):
            raise KeyboardInterrupt
    return log


# --- what is computed --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share_prefix, batch_size, accumulation", [(True, 20, 1), (True, 3, 7), (False, 20, 1), (False, 5, 4)])
def test_first_step_has_the_loss_and_the_gradient_of_the_plain_samples(settings, run, samples, share_prefix, batch_size, accumulation):
    """The definition, without packing and Trainer: mean over all labelled tokens of the effective batch, here all samples."""
    chosen = settings(steps=1, checkpoint_steps=1, warmup_steps=0, share_prefix=share_prefix,
                      batch_size=batch_size, accumulation=accumulation)
    first = training.read_log(run(chosen))[0]
    model, _ = training.prepare(chosen)
    loss = 0.0
    for sample in samples[0]:
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(sample.labels[1:]), reduction="sum")
    loss = loss / sum(len(sample.ids) - sample.labels_from for sample in samples[0])
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_accumulation_equals_the_larger_batch(settings, run):
    one = run(settings(run="one", batch_size=8))
    two = run(settings(run="two", batch_size=4, accumulation=2))
    assert [loss for _, loss, *_ in _losses(one)] == pytest.approx([loss for _, loss, *_ in _losses(two)], rel=1e-5)
    for name, weight in _weights(one, 6).items():
        assert (weight - _weights(two, 6)[name]).norm() <= 1e-3 * weight.norm(), name


def test_losses_of_a_known_run(settings, run):
    """Fixed numbers: seed, order of the samples, initialisation, loss, optimizer and schedule all stay what they were."""
    losses = [loss for _, loss, *_ in _losses(run(settings(seed=11)))]
    assert losses == pytest.approx([7.02616, 6.97067, 6.63927, 6.66349, 6.42889, 6.24014], rel=5e-4)


def test_evaluation_is_the_mean_over_answer_tokens(settings, run, samples):
    folder = run(settings(eval_steps=6))
    entry = training.read_log(folder)[-1]
    model, _ = models.load_finetuned(settings().base, folder / "checkpoint-6", "none", "fp32")
    loss = tokens = right = 0
    for sample in samples[1]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sample.ids])).logits[0, sample.labels_from - 1 : -1]
        answer = torch.tensor(sample.ids[sample.labels_from:])
        loss += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
        tokens += len(answer)
        right += bool((logits.argmax(-1) == answer).all())
    assert entry["eval_loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert entry["eval_accuracy"] == pytest.approx(right / 6)


def test_wrong_answers_are_counted_by_sample(settings, samples, monkeypatch):
    """A model that knows every answer but the first tokens of two: 4 of 6 are right."""
    def logits(model, batch):
        known = torch.nn.functional.one_hot(batch["labels"], 640).float()
        known[(batch["sample"] == 1) | (batch["sample"] == 4)] = 0
        return known
    monkeypatch.setattr(trainer.packing, "label_logits", logits)
    _, made = _trainer(settings(), samples)
    assert made.evaluation_loop(made.get_eval_dataloader(), "").metrics["eval_accuracy"] == pytest.approx(4 / 6)


def test_evaluation_and_gradient_checkpointing_change_nothing(settings, run):
    plain = run(settings(run="plain", dropout=0.3))
    _assert_same(_weights(plain, 6), _weights(run(settings(run="evaluated", dropout=0.3, eval_steps=1)), 6))
    _assert_same(_weights(plain, 6), _weights(run(settings(run="checkpointed", dropout=0.3, gradient_checkpointing=True)), 6))


def test_settings_that_leave_the_result_of_a_short_run_alone_arrive(settings, samples):
    """The prefix is shared, memory saved, weights decayed, dropout drawn only where the settings say so."""
    def arrived(chosen):
        model, made = _trainer(chosen, samples)
        dropout = model.peft_config["default"].lora_dropout
        return made.collator.prefix, made.args.weight_decay, made.args.activation_checkpointing, dropout
    assert arrived(settings()) == (chat.shared_prefix(samples[0]), 0.0, False, 0.0) and chat.shared_prefix(samples[0]) > 20
    assert arrived(settings(share_prefix=False, weight_decay=0.1, gradient_checkpointing=True, dropout=0.2)) == (None, 0.1, True, 0.2)


# --- 4 bit -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bias", [True, False])  # of the attention layers: the two ways in which the gradient was lost
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_four_bit_gradients_after_an_evaluation(make_base, samples, tokenizer, monkeypatch, bias, dtype):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # without its guard it repacks the weights, on any CPU
    chosen = TrainSettings(base=make_base(attention_bias=bias), rank=4, dtype=dtype, dropout=0.0, layers=0, target_modules=SIX)
    batch = trainer.Collator(samples[0], True, tokenizer)(samples[0][:8])

    def gradients(evaluate):
        model, _ = training.prepare(chosen)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
            if evaluate:
                trainer.packing.label_logits(model.eval(), batch)
        trainer.packing.loss_sum(model.train(), batch).backward()
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    once, again = gradients(False), gradients(True)
    _assert_same(once, again)
    assert all(gradient.norm() > 0 for gradient in once.values())


def test_four_bit_layers_are_guarded(settings, monkeypatch):
    """The trap shows on CPUs with AVX512-BF16 only; that the guard is on, everywhere that bitsandbytes takes for one."""
    from bitsandbytes.nn import Linear4bit
    seen, guard = [], models.guard_cpu_kernels
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr(models, "guard_cpu_kernels", lambda model: seen.append(guard(model)))
    model, _ = training.prepare(settings(method="qlora"))
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert seen == [12] and len(layers) == 12  # 2 layers x 6 matrices
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert all(layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_qlora_learns_evaluates_and_loads(settings, run, samples, dtype):
    folder = run(settings(method="qlora", dtype=dtype, steps=12, checkpoint_steps=6, eval_steps=6, batch_size=8, learning_rate=1e-2))
    log = training.read_log(folder)
    assert log[-1]["eval_loss"] < 0.8 * log[0]["loss"]
    model, tokenizer = models.load_finetuned(settings().base, folder / "checkpoint-12", "nf4", dtype)
    batch = trainer.Collator(samples[1], True, tokenizer)(samples[1])
    with torch.no_grad():
        loss = trainer.packing.loss_sum(model, batch) / len(batch["labels"])
    assert loss.item() == pytest.approx(log[-1]["eval_loss"], rel=1e-5 if dtype == "fp32" else 1e-2)


# --- the same again, and going on --------------------------------------------------------------------------------

def test_a_run_does_not_depend_on_what_the_model_went_through(settings, samples):
    model, tokenizer = training.prepare(settings())
    one = training.train(settings(run="one", dropout=0.2), model, tokenizer, *samples, SOURCE, log=[].append)
    torch.manual_seed(99)
    two = training.train(settings(run="two", dropout=0.2), model, tokenizer, *samples, SOURCE, log=[].append)
    _assert_same(_weights(one, 6), _weights(two, 6))
    assert _losses(one) == _losses(two)


@pytest.mark.parametrize("changes", [
    dict(dropout=0.3, accumulation=2, eval_steps=2),                       # stops in the middle of an epoch
    dict(dropout=0.3, batch_size=10, eval_steps=3, checkpoint_steps=4),    # goes on from the end of one
    dict(dropout=0.3, eval_steps=2, early_stopping=2, learning_rate=1e-30),  # and with what early stopping remembers
], ids=["middle", "epoch's end", "early stopping"])
def test_resume_is_exact(settings, run, changes):
    chosen = dict(steps=12) | changes
    whole = run(settings(run="whole", **chosen))
    with pytest.raises(training.TrainingInterrupted):
        run(settings(run="parts", **chosen), log=_stop_at(5))
    lines = []
    parts = run(settings(run="parts", **chosen), lines=lines)
    assert "goes on from" in lines[0] and "checkpoint-4" in lines[0]
    last = max(models.finished_checkpoints(whole))
    assert last == (6 if "early_stopping" in changes else 12)
    assert list(models.finished_checkpoints(parts)) == list(models.finished_checkpoints(whole))
    _assert_same(_weights(whole, last), _weights(parts, last))
    assert _losses(whole) == _losses(parts)
    assert [entry["seconds"] for entry in training.read_log(parts)] == sorted(entry["seconds"] for entry in training.read_log(parts))


def test_resume_logs_what_the_whole_run_logs(settings, run, monkeypatch):
    """A loss is the mean since the line before: checkpoints between two lines must not split it."""
    monkeypatch.setattr(trainer, "LINES", 2)  # a line every 10 steps
    chosen = dict(steps=12, checkpoint_steps=4)
    whole = run(settings(run="whole", **chosen))
    with pytest.raises(training.TrainingInterrupted):
        run(settings(run="parts", **chosen), log=_stop_at(10))
    assert _losses(whole) == _losses(run(settings(run="parts", **chosen)))
    assert [step for step, *_ in _losses(whole)] == [1, 4, 8, 10, 12]


def test_a_half_written_checkpoint_is_removed_and_named(settings, run):
    with pytest.raises(training.TrainingInterrupted):
        run(settings(), log=_stop_at(5))
    half = paths.runs("t") / "checkpoint-6"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    lines = []
    run(settings(), lines=lines)
    assert any("checkpoint-6" in line and "never finished" in line for line in lines)
    assert models.find_checkpoint(str(paths.runs("t")), 6)


def test_a_finished_run_is_loaded(settings, run, samples):
    folder = run(settings())
    before = (folder / "run.json").read_bytes(), _losses(folder)
    model, tokenizer = training.prepare(settings())
    lines = []
    training.train(settings(), model, tokenizer, *samples, SOURCE, log=lines.append)
    assert "is finished" in lines[0] and len(lines) == 2
    assert before == ((folder / "run.json").read_bytes(), _losses(folder))
    held = {name.replace(".default", ""): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    _assert_same(_weights(folder, 6), held)


def test_early_stopping_keeps_and_records_where_it_stopped(settings, run):
    chosen = settings(steps=40, checkpoint_steps=40, eval_steps=2, early_stopping=2, learning_rate=1e-30)
    folder = run(chosen)
    result = models.read_run(str(folder))["result"]
    assert list(models.finished_checkpoints(folder)) == [6]  # best at 2, not better at 4 and 6
    assert (result["steps"], result["stopped_early"], result["best_step"]) == (6, True, 2)
    lines = []
    run(chosen, lines=lines)
    assert "is finished" in lines[0]


# --- what a run folder holds -------------------------------------------------------------------------------------

def test_run_folder(settings, run, samples, tmp_path):
    lines = []
    folder = run(settings(eval_steps=3, checkpoint_steps=3), lines=lines)
    assert folder == paths.runs("t")
    assert {path.name for path in folder.iterdir()} == {"run.json", "log.jsonl", "checkpoint-3", "checkpoint-6"}
    record = models.read_run(str(folder))
    assert record["settings"]["learning_rate"] == 5e-3 and record["data"] == SOURCE and record["chat_format"] == "glm4"
    assert record["samples"]["train"] == 20 and record["samples"]["dev"] == 6
    assert record["base"]["name"] == "tiny" and {len(sum_) for sum_ in record["base"]["files"].values()} == {64}
    assert set(record["base"]["files"]) == {"config.json", "model.safetensors"}
    assert set(record["versions"]) == {"python", "glmlab", "torch", "transformers", "peft", "bitsandbytes"}
    assert record["dtype"] == "float32" and record["device"] == "cpu"
    assert record["trainable_parameters"] == sum(weight.numel() for weight in _weights(folder, 6).values())

    for step in (3, 6):
        checkpoint = folder / f"checkpoint-{step}"
        assert {path.name for path in checkpoint.iterdir()} == STATE | {"adapter_model.safetensors", "adapter_config.json", "glmlab.json"}
        models.check_adapter(checkpoint)
        facts = json.loads((checkpoint / "glmlab.json").read_text(encoding="utf-8"))
        assert facts["step"] == step and facts["base"] == "tiny" and facts["chat_format"] == "glm4" and facts["last"] == (step == 6)
        assert set(facts["metrics"]) == {"loss", "eval_loss", "eval_accuracy"}
        assert set(facts["files"]) == {"adapter_model.safetensors", "adapter_config.json"}
        for path in checkpoint.glob("*.json"):
            assert str(tmp_path) not in path.read_text(encoding="utf-8")
        assert json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == "tiny"

    log = training.read_log(folder)
    trained = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in trained] == [1, 2, 3, 4, 5, 6] and [entry["step"] for entry in log if "eval_loss" in entry] == [3, 6]
    assert set(trained[0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "labelled_per_second",
                               "memory_gib", "seconds"}
    assert 0 < trained[-1]["labelled_per_second"] < trained[-1]["tokens_per_second"] and trained[-1]["memory_gib"] > 0.1
    assert len(lines) == 10 and lines[0].startswith("pack_tokens 4,096: ") and "step 6/6  loss " in lines[-3] and "answers right" in lines[-2] and "6 steps in" in lines[-1]


def test_early_stopping_leaves_no_path_of_this_machine(settings, run, tmp_path):
    folder = run(settings(eval_steps=2, early_stopping=3))
    for path in folder.glob("checkpoint-*/*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path


def test_saving_asks_the_hub_nothing(settings, run, monkeypatch):
    """PEFT would look up the base by its name to compare the vocabularies: behind a slow link, minutes a checkpoint."""
    def asked(*args, **kwargs):
        raise AssertionError(args)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", asked)
    run(settings(steps=2))


def test_keep_optimizer(settings, run):
    folder = run(settings(keep_optimizer=False))
    for checkpoint in models.finished_checkpoints(folder).values():
        assert {path.name for path in checkpoint.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "glmlab.json"}
    lines = []
    run(settings(keep_optimizer=False), lines=lines)
    assert "is finished" in lines[0]


def test_tensorboard(settings, run):
    folder = run(settings(tensorboard=True, steps=2))
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    assert not list(run(settings(run="without", steps=2)).glob("tensorboard"))


def test_the_model_is_given_back_as_it_was_and_nothing_else_is_printed(settings, samples, capfd):
    model, tokenizer = training.prepare(settings())
    model.config.use_cache = True
    transformers.logging.set_verbosity_warning()
    capfd.readouterr()
    training.train(settings(eval_steps=2, early_stopping=1), model, tokenizer, *samples, SOURCE, log=[].append)
    assert capfd.readouterr() == ("", "")
    assert not model.training and model.config.use_cache and transformers.logging.get_verbosity() == transformers.logging.WARNING
    assert all(parameter.grad is None for parameter in model.parameters())


def test_summary(settings):
    model, _ = training.prepare(settings())
    facts = training.summary(model, settings(batch_size=4, accumulation=3, steps=10), 60)
    assert facts["effective_batch"] == 12 and facts["epochs"] == 2.0
    # rank 4 on q, k, v, o, gate_up, down of hidden 64, 128 query and 64 key rows, intermediate 128
    assert facts["trainable_parameters"] == 2 * 4 * ((64 + 128) + 2 * (64 + 64) + (128 + 64) + (64 + 256) + (128 + 64))
    assert facts["share"] == facts["trainable_parameters"] / facts["all_parameters"]


def test_lines_a_run():
    for steps in (1, 7, 20, 50, 200, 300, 1000, 5000, 12345):
        assert steps < 30 and trainer.log_interval(steps) == 1 or 10 <= steps / trainer.log_interval(steps) <= 30
    assert [trainer.clock(s) for s in (0, 59.6, 123, 3600, 86399)] == ["0:00", "1:00", "2:03", "1:00:00", "23:59:59"]


def test_read_log(tmp_path):
    assert training.read_log(tmp_path) == []
    runs.append_log(tmp_path, {"step": 1, "loss": 2.0, "grad_norm": float("inf")})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')  # the machine went down
    assert training.read_log(tmp_path) == [{"step": 1, "loss": 2.0, "grad_norm": None}]
    (tmp_path / "log.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"log.jsonl, line 2: not a JSON object"):
        training.read_log(tmp_path)


# --- what is refused, and what goes wrong ------------------------------------------------------------------------

def test_another_run_is_refused_by_name(settings, run, samples, make_base):
    run(settings())
    with pytest.raises(ValueError, match="other settings or data:\n  rank: 4 there, 8 now\n  learning_rate: 0.005 there, 0.001 now\n"):
        run(settings(learning_rate=1e-3, rank=8))
    with pytest.raises(ValueError, match="data.train.sha256: abababababab… there, cdcdcdcdcdcd… now"):
        run(settings(), source={"train": SOURCE["train"] | {"sha256": "cd" * 32, "file": "elsewhere.csv"}})
    with pytest.raises(ValueError, match=r"samples.train: 20 there, 19 now\n  samples.sha256"):
        run(settings(), train=samples[0][:-1])
    with pytest.raises(ValueError, match=r"base.name: tiny there, other now\n  base.files.config.json"):
        run(settings(base=make_base("other", intermediate_size=192)))
    with pytest.raises(ValueError, match="dtype: float32 there, bfloat16 now"):
        run(settings(dtype="bf16"))
    with pytest.raises(FileExistsError, match=r"finished checkpoints: 2, 4, 6\) and resume is False; set resume to True"):
        run(settings(resume=False))
    free = dict(device="cpu", tensorboard=True, keep_optimizer=False, gradient_checkpointing=True)
    run(settings(**free), source={"train": SOURCE["train"] | {"file": "elsewhere.csv"}})


def test_a_run_keeps_the_relations_of_its_data(settings, run):
    """In run.json and in each checkpoint, which may be copied alone; a run of before, which has none, goes on."""
    folder = run(settings(steps=2), source=SOURCE)
    assert "relations" not in json.loads((folder / "checkpoint-2" / "glmlab.json").read_text(encoding="utf-8"))
    told = SOURCE | {"relations": ["创立", "朋友"]}
    assert run(settings(steps=2), source=told) == folder
    folder = run(settings(steps=2, run="told"), source=told)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"]["relations"] == ["创立", "朋友"]
    assert json.loads((folder / "checkpoint-2" / "glmlab.json").read_text(encoding="utf-8"))["relations"] == ["创立", "朋友"]


def test_checkpoints_without_run_json_are_refused(settings, run):
    folder = run(settings())
    (folder / "run.json").unlink()
    with pytest.raises(FileExistsError, match="holds checkpoints but no run.json"):
        run(settings())


def test_no_optimizer_state_to_go_on_from(settings, run):
    with pytest.raises(training.TrainingInterrupted):
        run(settings(), log=_stop_at(3))
    (paths.runs("t") / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"holds the optimizer state \(finished checkpoints: 2\)"):
        run(settings())


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors"])
def test_a_cut_file_is_refused_by_name(settings, run, name):
    with pytest.raises(training.TrainingInterrupted):
        run(settings(), log=_stop_at(5))
    path = paths.runs("t") / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"checkpoint-4/{name} is cut.*goes on from the checkpoint before it"):
        run(settings())
    models.finished_checkpoints(paths.runs("t"))[4].joinpath("glmlab.json").unlink()
    lines = []
    run(settings(), lines=lines)
    assert any("goes on from" in line and "checkpoint-2" in line for line in lines)


def test_interrupted(settings, run):
    with pytest.raises(KeyboardInterrupt, match="stopped at step 1 of 6, before its first checkpoint"):
        run(settings(), log=_stop_at(1))
    with pytest.raises(KeyboardInterrupt, match="stopped at step 5 of 6. The last finished checkpoint is .*checkpoint-4; train again"):
        run(settings(), log=_stop_at(5))


def test_interrupted_while_a_checkpoint_is_written(settings, run, monkeypatch):
    original = runs.finish_checkpoint

    def stop(checkpoint, **facts):
        if facts["step"] == 4:
            raise KeyboardInterrupt
        original(checkpoint, **facts)
    monkeypatch.setattr(runs, "finish_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-2"):
        run(settings())
    assert sorted(path.name for path in paths.runs("t").glob("checkpoint-*")) == ["checkpoint-2"]


SERIALIZING = "Error while serializing: I/O error: No space left on device (os error 28)"  # a class of its own, without errno
FULL = {
    "safetensors": ("peft.peft_model.safe_save_file", RuntimeError(SERIALIZING)),
    "torch": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
    "glmlab.json": ("glmlab.runs.paths.write_json", OSError(errno.ENOSPC, "cannot write glmlab.json: the disk is full")),
}


@pytest.mark.parametrize("where", FULL)
def test_full_disk(settings, run, monkeypatch, where):
    with pytest.raises(training.TrainingInterrupted):
        run(settings(), log=_stop_at(3))
    target, error = FULL[where]

    def full(*args, **kwargs):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written: .* is full .*resume=True \(finished checkpoints: 2\)"):
            run(settings())
    assert sorted(path.name for path in paths.runs("t").glob("checkpoint-*")) == ["checkpoint-2"]
    assert max(models.finished_checkpoints(run(settings()))) == 6


def test_other_errors_are_not_taken_for_a_full_disk(settings, run, monkeypatch):
    def broken(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("peft.peft_model.safe_save_file", broken)
    with pytest.raises(PermissionError):
        run(settings())
    assert not list(paths.runs("t").glob("checkpoint-*"))


def test_out_of_memory_says_what_to_lower(settings, run, monkeypatch):
    def out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(trainer.packing, "loss_sum", out_of_memory)
    with pytest.raises(MemoryError, match="batch_size lower than 4"):
        run(settings())


def test_layers_that_cannot_be_compiled_are_computed_as_they_are(settings, run, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no code for this graph")

    def compile_layers(model):
        for layer in memory.layers(model):
            layer.compile(backend=broken)
    plain = run(settings(run="plain"))
    monkeypatch.setattr(training, "_compiles", lambda *_: True)
    monkeypatch.setattr(memory, "compile_layers", compile_layers)
    lines = []
    folder = run(settings(run="compiled"), lines=lines)
    assert any(line.startswith("layers are not compiled from step 1 on: BackendCompilerFailed") for line in lines)
    _assert_same(_weights(folder, 6), _weights(plain, 6))


def test_a_loss_that_is_no_number_ends_the_run(settings, run):
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d; lower learning_rate$"):
        run(settings(learning_rate=1e30, warmup_steps=0, schedule="constant"))


def test_target_modules(settings):
    with pytest.raises(ValueError, match=r"no linear layer query_key_value, lm_head to put an adapter on; "
                                         r"it has down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj \(or all-linear\)"):
        training.prepare(settings(target_modules="q_proj,query_key_value,lm_head"))
    for method in ("lora", "qlora"):
        model, _ = training.prepare(settings(target_modules="all-linear", method=method))
        assert model.peft_config["default"].target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}
        assert not any("lm_head" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model, _ = training.prepare(settings(target_modules="self_attn.q_proj"))
    assert len([name for name, parameter in model.named_parameters() if parameter.requires_grad]) == 4


def test_inputs_that_cannot_be_trained_on(settings, run, samples):
    prompt = chat.Sample(samples[0][0].ids[:10], 10)
    with pytest.raises(ValueError, match="training sample 1 has no answer"):
        run(settings(), train=[samples[0][0], prompt])
    with pytest.raises(ValueError, match="no training samples"):
        run(settings(), train=[])
    with pytest.raises(ValueError, match="eval_steps is 2 but there are no dev samples"):
        run(settings(eval_steps=2), dev=[])
    with pytest.raises(ValueError, match="fp16 trains on NVIDIA GPUs only"):
        training.prepare(settings(dtype="fp16"))
    assert run(settings(), dev=[])  # without evaluations there need be none


def test_adapters_in_the_last_layers_only(settings):
    model, _ = training.prepare(settings(layers=1, target_modules="gate_up_proj,down_proj"))
    adapted = {name.split(".lora_")[0].split("model.model.model.")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted == {"layers.1.mlp.gate_up_proj", "layers.1.mlp.down_proj"}  # of two layers
    model, _ = training.prepare(settings(layers=2, target_modules="down_proj"))
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 4
    with pytest.raises(ValueError, match="layers: .* has 2 layers, not 3; 0 takes all"):
        training.prepare(settings(layers=3))


# --- passes ------------------------------------------------------------------------------------------------------

def test_how_a_step_is_split_into_passes_changes_nothing(settings, run):
    """pack_tokens 200 makes several packs of a step of 12 samples, the default one."""
    one, two = run(settings(run="one", batch_size=12)), run(settings(run="two", batch_size=6, accumulation=2, pack_tokens=200))
    assert [loss for _, loss, *_ in _losses(one)] == pytest.approx([loss for _, loss, *_ in _losses(two)], rel=1e-5)


def test_after_a_memory_error_the_step_is_computed_again_with_shorter_packs(settings, run, monkeypatch):
    """The second pass of step 2 fails once: the run goes on and ends where the undisturbed run ends, dropout included."""
    whole = run(settings(run="whole", batch_size=12, pack_tokens=150, dropout=0.2))
    real, calls, lines = trainer.PackTrainer._step, [], []

    def fails_once(self, model, samples, total):
        calls.append(self.pack_tokens)
        if len(calls) == 2:
            model.base_model.model.lm_head.weight.grad = None
            torch.rand(3)  # a draw that must be taken back
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, samples, total)

    monkeypatch.setattr(trainer.PackTrainer, "_step", fails_once)
    monkeypatch.setattr(trainer.PackTrainer, "_halve", lambda self, samples, error: self.said("again") or True)
    again = run(settings(run="again", batch_size=12, pack_tokens=150, dropout=0.2), lines=lines)
    assert lines.count("again") == 1 and len(calls) == 7 and _losses(whole) == _losses(again)
    _assert_same(_weights(whole, 6), _weights(again, 6))


def test_packs_are_halved_until_a_sample_stands_alone(settings, samples):
    _, made = _trainer(settings(batch_size=12, pack_tokens=400), samples)
    said, made.said = [], None
    made.said = said.append
    full = torch.OutOfMemoryError("CUDA out of memory")
    tried = [made.pack_tokens]
    while made._halve(samples[0][:12], full):
        tried.append(made.pack_tokens)
    assert tried[:3] == [400, 200, 100] and said[0].startswith("out of memory at step 1: pack_tokens 400 -> 200")
    assert max(map(len, made.collator.passes(samples[0][:12], made.pack_tokens, 1))) == 1
    assert not made._halve(samples[0][:12], RuntimeError("another error"))


def test_samples_on_disk_train_like_a_list(settings, run, samples, tmp_path):
    from glmlab import encoding
    one, two = run(settings(run="one")), run(settings(run="two"), train=encoding.store(tmp_path / "samples", samples[0]))
    assert _losses(one) == _losses(two)
