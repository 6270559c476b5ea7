"""`accelerate launch -m glmlab train` and `eval`: several processes compute what one computes, fail together, and go on as they began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from filelock import FileLock
from safetensors.torch import load_file

from glmlab import launch, parameters, paths, processes, runs, trainer
from glmlab.__main__ import main
from glmlab.chat import Sample

TIMES = {"evaluation_time", "avg_time_per_sample", "seconds", "first_token"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{"one", "two", "sharded": the folders that `two_processes` filled; "ended": how two processes ended}, once for all workers of pytest.

    `--multi_gpu` starts CPU processes where there is no GPU; `--cpu` would want MPI.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ended.json").exists():
            command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0",
                       two_processes.__file__, "cpu", str(folder / "two")]
            several = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, cwd=paths.ROOT)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GLMLAB_HOME", str(folder / "one"))
                two_processes.run(folder / "one", [two_processes.gradients, two_processes.stops_early, two_processes.commands])
            _, said = several.communicate(timeout=600)
            assert len(list((folder / "two" / "sharded").glob("done-*"))) == 2, said[-3000:]
            paths.write_json(folder / "ended.json", [several.returncode, said])
    ended = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    return {"one": folder / "one", "two": folder / "two", "sharded": folder / "two" / "sharded", "ended": ended}


def norm(tensors) -> torch.Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def adapter(folder: Path, run: str, step: int) -> dict:
    return load_file(folder / "data" / "runs" / run / f"checkpoint-{step}" / "adapter_model.safetensors")


def record(folder: Path, run: str) -> dict:
    return json.loads((folder / "data" / "runs" / run / "run.json").read_text(encoding="utf-8"))


def log(folder: Path, run: str) -> list[dict]:
    return runs.read_log(folder / "data" / "runs" / run)


# --- training ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("way, run", [*(("two", run) for run in two_processes.RUNS), *(("sharded", run) for run in two_processes.SHARDED)])
def test_every_step_has_the_samples_and_the_gradient_of_one_process(found, way, run):
    """Packed or padded, DDP or FSDP, in several passes, with a step of fewer samples than processes, base in 32 or 4 bit.

    The B matrices are where AdamW has moved them from zero. It divides by the gradient's own size, so that elements whose gradient is
    nothing but rounding move by rounding.
    """
    one, several = (torch.load(found[name] / f"{run}.pt") for name in ("one", way))
    assert several["samples"] == one["samples"] and [len(step) for step in one["samples"]] == [4, 1, 4]
    for wanted, gradient in zip(one["gradients"], several["gradients"], strict=True):
        assert gradient.keys() == wanted.keys()
        assert norm(gradient[name] - wanted[name] for name in wanted) <= 1e-6 * norm(wanted.values())
    first, second = adapter(found["one"], run, 3), adapter(found[way], run, 3)
    assert first.keys() == second.keys()
    assert norm(second[name] - first[name] for name in first) <= 1e-6 * norm(first.values())
    moved = [name for name in first if "lora_B" in name]
    assert norm(second[name] - first[name] for name in moved) <= 1e-3 * norm(first[name] for name in moved)


@pytest.mark.parametrize("way, run", [("two", "glm4-packed"), ("two", "chatglm-padded"), ("sharded", "glm4-4bit")])
def test_the_log_and_the_run_say_the_same(found, way, run):
    one, several = log(found["one"], run), log(found[way], run)
    for name in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
        assert [entry.get(name) for entry in several] == [pytest.approx(entry[name], rel=1e-6) if name in entry else None for entry in one]
    first, second = record(found["one"], run), record(found[way], run)
    assert (first["processes"], second["processes"]) == (1, 2) and (first["sharded"], second["sharded"]) == (False, way == "sharded")
    assert first["samples"] == second["samples"] and first["trainable_parameters"] == second["trainable_parameters"]


@pytest.mark.parametrize("way", ["two", "sharded"])
def test_gone_on_with_it_is_the_run_in_one_piece(found, way):
    """Every process has its own dropout, and takes up its own random state."""
    whole, again = (adapter(found[way], run, 4) for run in ("whole", "interrupted"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [entry["loss"] for entry in log(found[way], "whole")] == [entry["loss"] for entry in log(found[way], "interrupted")]
    checkpoint = found[way] / "data" / "runs" / "interrupted" / "checkpoint-2"
    assert {"adapter_model.safetensors", "optimizer.bin" if way == "sharded" else "optimizer.pt"} <= {path.name for path in checkpoint.iterdir()}
    assert [(found[way] / f"seed-{rank}").read_text() for rank in range(2)] == ["7", "8"]


def test_early_stopping_ends_all_at_the_same_step(found):
    one, two = (record(found[way], "early")["result"] for way in ("one", "two"))
    assert one["stopped_early"] and one["steps"] < 8
    assert all(one[name] == two[name] for name in ("steps", "best_step", "stopped_early"))
    assert sorted((found["two"] / "data" / "runs" / "early").glob("checkpoint-*/glmlab.json"))[-1].parent.name == f"checkpoint-{two['steps']}"


def test_another_number_of_processes_is_refused(found, tmp_path):
    """A finished run is loaded anywhere; one that would go on is not exactly the same run with other processes."""
    folder = found["two"] / "data" / "runs" / "interrupted"
    there, now = record(found["two"], "interrupted"), record(found["two"], "interrupted") | {"processes": 1}
    assert runs.open_run(folder, now, True).name == "checkpoint-4"
    (tmp_path / "run").mkdir()
    for name in ("run.json", "log.jsonl", "checkpoint-2"):
        (tmp_path / "run" / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match=r"was begun by 2 processes and would go on in 1 process, .* --num_processes 2\)"):
        runs.open_run(tmp_path / "run", now, True)
    with pytest.raises(ValueError, match="would go on in 2 processes with FSDP"):
        runs.open_run(tmp_path / "run", there | {"sharded": True}, True)
    (tmp_path / "run" / "run.json").unlink()
    paths.write_json(tmp_path / "run" / "run.json", {name: value for name, value in there.items() if name not in ("processes", "sharded")})
    with pytest.raises(ValueError, match="was begun by 1 process and would go on in 2 processes"):  # a run of before counts as one process
        runs.open_run(tmp_path / "run", there, True)


def test_samples_are_dealt_out_once_and_evenly():
    samples = [Sample(list(range(length)), 1) for length in (9, 3, 8, 2, 5, 4, 7)]
    shares = trainer.deal(samples, 3)
    assert sorted(len(sample.ids) for share in shares for sample in share) == [2, 3, 4, 5, 7, 8, 9]
    assert [[len(sample.ids) for sample in share] for share in shares] == [[9, 3, 2], [8, 4], [5, 7]]
    assert trainer.deal(samples, 1) == [samples] and trainer.deal(samples[:1], 2) == [samples[:1], []]


# --- errors ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, kind, text", [
    ("not-finite", "FloatingPointError", "the loss is nan at step 1; lower learning_rate"),
    ("other-settings", "ValueError", "rank: 4 there, 8 now"),
    ("few-rows", "ValueError", "batch_size x accumulation is 1, fewer rows a step than the 2 processes"),
    ("interrupted", "TrainingInterrupted", "training was stopped at step 2 of 4. The last finished checkpoint is"),
    ("first-process", "KeyError", "no such key")])
def test_an_error_of_one_process_is_every_process_s_and_said_once(found, name, kind, text):
    first, second = (json.loads((found["two"] / f"{name}-{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0] == kind and text in first[1] and first[1] == second[1]
    assert first[2] == [first[1]] and second[2] == []


def test_an_error_of_the_last_process_is_said_by_the_first(found):
    first, second = (json.loads((found["two"] / f"last-process-{rank}.json").read_text()) for rank in range(2))
    assert first == ["RuntimeError", "process 1: 'no such key'", ["process 1: 'no such key'"]]
    assert second == ["KeyError", "'no such key'", []]


def test_a_command_that_fails_ends_all_processes_and_says_why_once(found):
    status, said = found["ended"]
    assert status == 1 and said.count("checkpoint_steps: 100 is more than steps 5") == 1


def test_alone_everything_is_the_first_process():
    assert (processes.count(), processes.rank(), processes.own(5), processes.joined([1, 2])) == (1, 0, range(5), [1, 2])
    assert processes.from_first(lambda: 3) == processes.together(lambda: 3) == 3 and not processes.sharded()
    with processes.interrupts() as asked:
        assert not asked()


def test_what_several_processes_cannot_do(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device cuda:1: several processes take a GPU each; set device to auto, cuda or cpu"):
        processes.start("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP shares the weights between GPUs, and these processes use none"):
        processes.start("cpu")


def test_the_settings_of_fsdp_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file
    read = load_config_from_file(str(paths.notebooks("settings", "accelerate", "fsdp.yaml")))
    assert (read.distributed_type, read.fsdp_config["fsdp_version"], read.mixed_precision) == ("FSDP", 2, "no")
    assert read.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False


# --- eval and train ----------------------------------------------------------------------------------------------

def without_times(content):
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


@pytest.mark.parametrize("name, files", [("intent", 4), ("written", 4), ("triplets", 2), ("service", 2), ("medical", 2)])
def test_two_processes_write_the_files_of_one(found, name, files):
    folders = [found[way] / "eval" / name for way in ("one", "two")]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] and len(names[0]) == files
    for file in names[0]:
        one, two = ([without_times(json.loads(line)) for line in text.splitlines()] if file.endswith("l") else without_times(json.loads(text))
                    for text in ((folder / file).read_text(encoding="utf-8") for folder in folders))
        assert one == two, file
    about = json.loads((folders[1] / "results.json").read_text(encoding="utf-8"))
    assert about["about"]["samples"] == {"intent": 20, "written": 3, "triplets": 3, "service": 1, "medical": 9}[name]


def test_train_reads_the_rows_of_the_notebooks(found):
    one, two = (record(found[way], "command") for way in ("one", "two"))
    assert one["samples"] == two["samples"] and one["samples"]["train"] == 6 and one["data"]["train"]["file"] == "data/service/train.json"
    first, second = (adapter(found[way], "command", 1) for way in ("one", "two"))
    assert norm(second[name] - first[name] for name in first) <= 1e-6 * norm(first.values())


def test_settings_come_from_class_file_and_command_line(tmp_path):
    file = paths.notebooks("settings", "document-004.yaml")
    read = launch.settings_of(parameters.TrainSettings, str(file), {"learning_rate": "2e-4", "steps": "500", "tensorboard": "True"})
    assert (read.run, read.alpha, read.learning_rate, read.steps, read.tensorboard, read.seed) == ("document-004", 64, 2e-4, 500, True, 7)
    with pytest.raises(ValueError, match="rang: unknown parameter, did you mean rank"):
        launch.settings_of(parameters.TrainSettings, None, {"rang": "8"})
    with pytest.raises(ValueError, match="rank: 'eight' is str, must be int"):
        launch.settings_of(parameters.TrainSettings, None, {"rank": "eight"})
    with pytest.raises(ValueError, match="resume: 'maybe' is str, must be bool"):
        launch.settings_of(parameters.TrainSettings, None, {"resume": "maybe"})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="list.yaml is no settings file: it needs one line"):
        launch.settings_of(parameters.TrainSettings, str(tmp_path / "list.yaml"), {})
    with pytest.raises(FileNotFoundError):
        launch.settings_of(parameters.TrainSettings, str(tmp_path / "none.yaml"), {})


@pytest.mark.parametrize("task", launch.PROJECTS)
def test_commands_hand_on_what_was_asked(task, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "train", lambda *given: asked.append(given))
    monkeypatch.setattr(launch, "evaluate", lambda *given: asked.append(given))
    assert main(["train", task, "--settings", "a.yaml", "-p", "rank", "8", "-p", "run", "mine"]) == 0
    assert main(["eval", task, "--run", "mine", "--checkpoint", "5", "--out", "there", "-p", "samples", "3"]) == 0
    assert asked == [(task, "a.yaml", {"rank": "8", "run": "mine"}),
                     (task, None, {"samples": "3", "run": "mine", "checkpoint": "5", "output_dir": "there"})]
