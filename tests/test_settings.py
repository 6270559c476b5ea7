"""Parameters of a notebook: everything wrong is refused in one message; the parameters cell is the class."""

import ast
import dataclasses
import math
import os
from pathlib import Path

import pytest

from glmlab import paths, settings
from glmlab.parameters import CompareSettings, DataSettings, EvalSettings, FamilySettings, TrainSettings, WelcomeSettings
from glmlab.settings import read

CLASSES = [WelcomeSettings, DataSettings, TrainSettings, EvalSettings, CompareSettings, FamilySettings]


def refused(cls, **parameters):
    """The lines of the one error that these parameters give, the first and the list of parameters left out."""
    namespace = dict(parameters)
    with pytest.raises(ValueError) as error:
        read(cls, namespace)
    assert settings.SEEN not in namespace
    head, *lines = str(error.value).split("\n  ")
    assert head == "the parameters cannot be used:"
    listed = lines.index("parameters: " + ", ".join(field.name for field in dataclasses.fields(cls)))
    return lines[:listed]


# --- reading -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_are_valid_and_frozen(cls):
    found = read(cls, {})
    assert found == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.seed = 8


@pytest.mark.parametrize("cls, wrong, meant", [(EvalSettings, "checkpiont", "checkpoint"), (TrainSettings, "learningrate", "learning_rate"),
                                               (TrainSettings, "max_steps", "steps"), (TrainSettings, "lora_alpha", "alpha"),
                                               (TrainSettings, "per_device_train_batch_size", "batch_size"),
                                               (TrainSettings, "eval_step", "eval_steps"),
                                               (TrainSettings, "data_seed", "seed"), (CompareSettings, "tst_fle", "test_file")])
def test_an_unknown_parameter_is_refused_with_the_one_meant(cls, wrong, meant):
    assert refused(cls, **{wrong: 1}) == [f"{wrong}: unknown parameter, did you mean {meant}?"]


def test_an_unknown_parameter_like_no_other_is_refused_too():
    assert refused(EvalSettings, xyzzy=1) == ["xyzzy: unknown parameter"]
    with pytest.raises(ValueError, match=r"parameters: run, checkpoint, samples, .*\n  \(in an open notebook: correct the cell"):
        read(EvalSettings, {"xyzzy": None})


def test_what_is_no_parameter_is_not_looked_at():
    namespace = {"In": ["x"], "Out": {}, "_oh": {}, "_": 3, "__name__": "__main__", "Path": Path, "os": os, "read": read, "checkpoint": 500}
    assert read(EvalSettings, namespace) == EvalSettings(checkpoint=500)
    namespace |= {"rows": 5, "title": "later cells define names", "checkpoint": 1000}
    assert read(EvalSettings, namespace).checkpoint == 1000
    with pytest.raises(ValueError, match="checkpoint: 'x' is str"):  # but values are checked every time
        read(EvalSettings, namespace | {"checkpoint": "x"})


def test_wrong_types_are_refused_together():
    assert refused(TrainSettings, steps="200", rank=16.0, dropout="0.1", resume=1, base=9, batch_size=True, seed=None) == [
        "base: 9 is int, must be str; with papermill use -r base 9", "rank: 16.0 is float, must be int",
        "dropout: '0.1' is str, must be float",
        "batch_size: True is bool, must be int", "steps: '200' is str, must be int", "resume: 1 is int, must be bool; write True or False",
        "seed: None is NoneType, must be int"]
    assert refused(CompareSettings, checkpoints=500) == ["checkpoints: 500 is int, must be str; with papermill use -r checkpoints 500"]


def test_a_whole_number_is_a_float_too():
    found = read(TrainSettings, {"dropout": 0, "weight_decay": 1})
    assert (found.dropout, found.weight_decay) == (0.0, 1.0) and type(found.dropout) is float


@pytest.mark.parametrize("cls, name, value, problem", [
    (TrainSettings, "rank", 0, "must be at least 1"), (TrainSettings, "dropout", 1.0, "must be less than 1"),
    (TrainSettings, "dropout", -0.1, "must be at least 0"), (TrainSettings, "learning_rate", 0.0, "must be more than 0"),
    (TrainSettings, "learning_rate", math.nan, "is not a finite number"),
    (TrainSettings, "learning_rate", math.inf, "is not a finite number"),
    (TrainSettings, "seed", 2**32, "must be at most 4294967295"), (TrainSettings, "max_length", 63, "must be at least 64"),
    (TrainSettings, "method", "full", "is none of qlora, lora"),
    (TrainSettings, "run", " ", "is empty; name of the run: a folder under data/runs"),
    (TrainSettings, "target_modules", "q_proj, v_proj", "is not understood; linear layers that get an adapter, or all-linear"),
    (EvalSettings, "checkpoint", -2, "must be at least -1"), (EvalSettings, "mode", "Score", "is none of score, generate"),
    (EvalSettings, "device", "gpu", "is not understood; auto, cpu, cuda, cuda:N or mps"),
    (EvalSettings, "dtype", "float16", "is none of auto, bf16, fp16, fp32"),
    (CompareSettings, "checkpoints", "500;1000", "is not understood; all, or steps"),
    (CompareSettings, "bootstrap", 99, "must be at least 100"),
    (DataSettings, "form", "chat", "is none of system, template"),
    (CompareSettings, "beside", "other", "is not understood; checkpoints of other runs"),
])
def test_a_value_out_of_its_rule(cls, name, value, problem):
    line, = refused(cls, **{name: value})
    assert line.startswith(f"{name}: {value!r} {problem}")


@pytest.mark.parametrize("cls, values", [
    (EvalSettings, {"device": "cuda:1", "checkpoint": -1}), (EvalSettings, {"checkpoint": 0, "run": "../my/run"}),
    (CompareSettings, {"checkpoints": "500,1000"}),
    (CompareSettings, {"beside": "mine:-1,other run:500"}), (TrainSettings, {"target_modules": "all-linear"}),
    (TrainSettings, {"target_modules": "self_attn.q_proj"}),
    (TrainSettings, {"schedule": "constant", "warmup_steps": 0}), (TrainSettings, {"early_stopping": 3}),
    (TrainSettings, {"eval_steps": 0}),
])
def test_values_that_are_right(cls, values):
    found = read(cls, dict(values))
    assert {name: getattr(found, name) for name in values} == values


@pytest.mark.parametrize("values, problem", [
    ({"steps": 40, "warmup_steps": 4, "eval_steps": 20},
     "checkpoint_steps: 50 is more than steps 40, so nothing would be saved; use at most 40"),
    ({"steps": 130}, "steps: 130 is no multiple of checkpoint_steps 50, so the last 30 steps would never be saved; use 100 or 150 steps"),
    ({"eval_steps": 300}, "eval_steps: 300 is more than steps 150, so nothing would be evaluated; use at most 150, or 0 for none"),
    ({"early_stopping": 2, "eval_steps": 0}, "early_stopping: it needs evaluations; set eval_steps above 0"),
    ({"early_stopping": 2, "eval_steps": 20}, "early_stopping: every checkpoint must be evaluated to find the best one; "
                                              "make checkpoint_steps (50) a multiple of eval_steps (20)"),
    ({"warmup_steps": 201},
     "warmup_steps: 201 is more than steps 150, learning_rate would never be reached; a tenth of the steps is usual"),
    ({"schedule": "constant"}, "schedule: constant has no warm-up, but warmup_steps is 20; use constant_with_warmup, or 0 warmup_steps"),
])
def test_an_impossible_combination_says_what_to_do(values, problem):
    assert refused(TrainSettings, **({"steps": 150, "checkpoint_steps": 50, "eval_steps": 50} | values)) == [problem]


def test_impossible_combinations_are_refused_together():
    lines = refused(TrainSettings, steps=130, checkpoint_steps=50, eval_steps=0, early_stopping=1, warmup_steps=500, schedule="constant", stepps=3)
    assert [line.partition(":")[0] for line in lines] == ["stepps", "steps", "early_stopping", "warmup_steps", "schedule"]


def test_combinations_are_looked_at_when_every_value_is_right():
    assert refused(TrainSettings, steps=130, rank=0) == ["rank: 0 must be at least 1"]


def test_one_budget_for_every_base():
    family = FamilySettings(steps=30, checkpoint_steps=10, learning_rate=1e-3, rank=8, seed=3, bases="glm4-tiny,some/where/mine")
    one, other = (family.training(base) for base in family.bases.split(","))
    assert (one.run, other.run, other.base) == ("family-glm4-tiny", "family-mine", "some/where/mine")
    assert dataclasses.replace(one, run=other.run, base=other.base) == other
    assert (one.steps, one.checkpoint_steps, one.learning_rate, one.rank, one.seed) == (30, 10, 1e-3, 8, 3)
    assert (one.target_modules, one.method, one.dtype, one.eval_steps) == ("all-linear", "lora", "fp32", 0)


def test_a_family_refuses_what_a_run_refuses_and_a_base_twice():
    lines = refused(FamilySettings, bases="glm4-tiny,chatglm-tiny,glm4-tiny", steps=130, checkpoint_steps=60)
    assert lines == ["bases: glm4-tiny more than once; name each base once",
                     "steps: 130 is no multiple of checkpoint_steps 60, so the last 10 steps would never be saved; use 120 or 180 steps"]
    line, = refused(FamilySettings, bases="glm4-tiny, chatglm-tiny")
    assert line.startswith("bases: 'glm4-tiny, chatglm-tiny' is not understood")


# --- the parameters cell -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("cls", CLASSES)
def test_the_parameters_cell_is_read_back(cls):
    source = settings.parameters_cell(cls)
    namespace = {}
    exec(source, namespace)  # noqa: S102
    del namespace["__builtins__"]
    assert read(cls, {name: value for name, value in namespace.items() if name != "__annotations__"}) == cls()
    assert [line.partition(":")[0] for line in source.splitlines()] == [field.name for field in dataclasses.fields(cls)]
    for line, statement in zip(source.splitlines(), ast.parse(source).body, strict=True):
        assert line.count("=") == 1 and "  # " in line and len(line) <= 200  # papermill shows no help of a line with a second `=`
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("prompt", ['他说"好"', "C:\\neu\\tag", "两行\n第二行", "it's = {x}"])
def test_any_text_can_be_the_default_of_a_cell(prompt):
    source = settings.parameters_cell(WelcomeSettings, prompt=prompt, seed=9)
    namespace = {}
    exec(source, namespace)  # noqa: S102
    assert namespace["prompt"] == prompt and namespace["seed"] == 9 and len(source.splitlines()) == len(dataclasses.fields(WelcomeSettings))


def test_a_cell_has_no_impossible_defaults():
    with pytest.raises(ValueError, match="unknown parameter, did you mean rank"):
        settings.parameters_cell(TrainSettings, rnk=3)
    assert "rank: int = 64  # rank r of the adapter matrices" in settings.parameters_cell(TrainSettings, rank=64).splitlines()


# --- paths and printing ------------------------------------------------------------------------------------------

def test_where_an_empty_path_points(monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    found = EvalSettings(run="some/where/mine", checkpoint=-1)
    assert settings.path_of(found, "test_file") == paths.ROOT / "data" / "intent" / "test_new.csv"
    assert settings.path_of(found, "output_dir") == tmp_path / "reports" / "intent" / "eval" / "mine--1"
    assert settings.path_of(found, "output_dir", checkpoint=500) == tmp_path / "reports" / "intent" / "eval" / "mine-500"
    assert settings.path_of(DataSettings(), "output_dir") == tmp_path / "reports" / "intent" / "data"


def test_a_given_path_counts_from_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert settings.path_of(DataSettings(train_file="my/train.csv"), "train_file") == tmp_path / "my" / "train.csv"
    assert settings.path_of(DataSettings(train_file="~/train.csv"), "train_file") == tmp_path / "me" / "train.csv"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_empty_default_says_what_it_stands_for(cls):
    for field in dataclasses.fields(cls):
        if "empty" in field.metadata:
            assert field.default == "" and "empty:" in field.metadata["help"]
            assert settings.path_of(cls(), field.name).is_absolute()


def test_show_prints_every_resolved_value(capsys):
    settings.show(EvalSettings(device="cpu", dtype="fp32", run="mine", checkpoint=500))
    lines = capsys.readouterr().out.splitlines()
    for field in dataclasses.fields(EvalSettings):
        assert any(line.startswith(field.name + " ") and line.endswith(field.metadata["help"]) for line in lines), field.name
    text = "\n".join(lines)
    assert "data/intent/test_new.csv" in text and "reports/intent/eval/mine-500" in text
    assert any(line.startswith("device    cpu: ") and len(line) > 20 for line in lines) and "dtype     float32: " in text
    assert "versions  python " in text and "torch 2." in text and lines[-1] == "seed      7"


def test_show_lines_up_chinese_text(capsys):
    assert settings.text_width("a查b") == 4 and settings.pad("查", 4) == "查  " and settings.pad("查询", 2) == "查询"
    settings.show(DataSettings(train_file="数据/训练.csv"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("form ", "base "))]
    help_at = {settings.text_width(line.partition(word)[0]) for line, word in zip(lines, ("system:", "base model"))}
    assert len(lines) == 2 and len(help_at) == 1
