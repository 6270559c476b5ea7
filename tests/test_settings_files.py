"""notebooks/settings/*.yaml: what `papermill -f` reads from them is accepted by the notebook that their first line names."""

import json
import re

import pytest
from papermill.iorw import read_yaml_file

from glmlab import bench_memory, models, parameters, paths, settings

CLASSES = parameters.NOTEBOOKS
FILES = sorted(paths.notebooks("settings").glob("*.yaml"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_published_configurations_are_there():
    assert {"document-000", "document-001", "document-002", "document-003", "document-004", "reference", "workshop"} <= {path.stem for path in FILES}


@each
def test_a_settings_file_is_accepted_by_its_notebook(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = re.match(rf"# papermill notebooks/(\w+)\.ipynb out\.ipynb -f notebooks/settings/{path.name}( |$)", first)
    assert found and found[1] in CLASSES, "the first line must be the command that uses the file"
    values = read_yaml_file(str(path))  # papermill's own reader: 2e-4 is text for it
    read = settings.read(CLASSES[found[1]], dict(values))
    assert {name: getattr(read, name) for name in values} == values


def test_the_documents_configurations_say_what_the_documents_say():
    stated = {"document-001": {"method": "qlora", "rank": 8, "alpha": 32, "dropout": 0.1, "target_modules": "query_key_value", "layers": 0,
                               "learning_rate": 2e-4, "warmup_steps": 100, "batch_size": 4, "accumulation": 4, "steps": 170, "dtype": "fp16"},
              "document-000": {"rank": 64, "alpha": 128, "learning_rate": 2e-4, "batch_size": 4, "steps": 5000},
              "document-002": {"method": "lora", "rank": 8, "alpha": 32, "learning_rate": 5e-4, "batch_size": 4, "steps": 75, "max_length": 512},
              "document-003": {"method": "qlora", "rank": 16, "alpha": 32, "dropout": 0.1, "target_modules": "all-linear", "layers": 0,
                               "learning_rate": 1e-4, "batch_size": 1, "accumulation": 16, "steps": 99, "warmup_steps": 3, "max_length": 1024,
                               "gradient_checkpointing": True, "form": "rounds", "dtype": "fp16"},
              "document-004": {"rank": 16, "alpha": 64, "dropout": 0.1, "target_modules": "q_proj,k_proj,v_proj,o_proj",
                               "learning_rate": 2e-4, "batch_size": 4, "max_length": 1024, "steps": 5000, "checkpoint_steps": 500}}
    for name, wanted in stated.items():
        values = read_yaml_file(str(paths.notebooks("settings", f"{name}.yaml")))
        assert {key: values.get(key) for key in wanted} == wanted and "base" not in values, name


def test_the_reference_run_has_the_checkpoints_that_ship():
    values = read_yaml_file(str(paths.notebooks("settings", "reference.yaml")))
    assert values["run"] == "intent-reference" and not values["keep_optimizer"]
    assert values["steps"] == 5000 and all(step % values["checkpoint_steps"] == 0 for step in (500, 1000, 2000, 3000, 4000, 5000))


@pytest.mark.parametrize("task", ["triplets", "service", "medical"])
def test_a_reference_run_was_trained_with_its_settings_file(task):
    recorded = json.loads(paths.runs(f"{task}-reference", "run.json").read_text(encoding="utf-8"))["settings"]
    values = read_yaml_file(str(paths.notebooks("settings", f"reference-{task}.yaml")))
    assert {name: recorded[name] for name in values} == values


def test_the_workshop_file_is_the_default_of_the_notebook():
    values = read_yaml_file(str(paths.notebooks("settings", "workshop.yaml")))
    assert parameters.TrainSettings(**values) == parameters.TrainSettings()


@pytest.mark.parametrize("name, bases", bench_memory.BASES.items())
def test_a_card_of_each_size_has_its_settings(name, bases):
    values = read_yaml_file(str(paths.notebooks("settings", f"{name}.yaml")))
    assert values["base"] == bases[0] and bench_memory.CARDS.keys() == bench_memory.BASES.keys()
    weights = {"qlora": "nf4_gib", "lora": "bf16_gib"}[values["method"]]
    for base in bases:  # nearly half of the card is left for what training computes
        assert getattr(models.CATALOGUE[base], weights) < 0.55 * (bench_memory.CARDS[name] - bench_memory.CONTEXT_GIB)
    assert values["pack_tokens"] == 0 and values["layers"] == 0 and values["max_length"] <= (2048 if "chatglm-6b" in bases else 8192)
