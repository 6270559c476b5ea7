"""The notebooks: how they are built (static), and that they run (nbval on smoke-sized copies, papermill from a foreign folder)."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from glmlab import docs, parameters, paths, settings

CLASSES = parameters.NOTEBOOKS
NOTEBOOKS = docs.notebook_paths()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

#: Parameters with which a notebook runs in seconds; nothing in a notebook may depend on its default sizes.
SMOKE = {
    "00_welcome": {"max_new_tokens": 8},
    "01_data": {},
    "02_train": {"run": "smoke", "train_samples": 80, "dev_samples": 16, "steps": 4, "checkpoint_steps": 2, "eval_steps": 2, "warmup_steps": 1,
                 "batch_size": 4},
    "03_eval": {"samples": 60},
    "04_compare": {"checkpoints": "500,5000", "dev_samples": 40, "samples": 80, "bootstrap": 200},
    "05_system_prompt": {"run": "smoke-prompts", "train_samples": 40, "dev_samples": 8, "samples": 10, "speed_samples": 2, "cost_steps": 2,
                         "steps": 2, "seconds": 1, "counted_samples": 150, "bootstrap": 100, "batch_size": 2},
    "11_triplets_data": {},
    "12_triplets_train": {"run": "smoke-triplets", "train_samples": 60, "dev_samples": 12, "steps": 4, "checkpoint_steps": 2, "eval_steps": 2,
                          "warmup_steps": 1, "batch_size": 4},
    "13_triplets_eval": {"samples": 12},
    "14_triplets_compare": {"dev_samples": 10, "samples": 10, "bootstrap": 200},
    "21_service_data": {},
    "22_service_train": {"run": "smoke-service", "train_samples": 60, "dev_samples": 12, "steps": 4, "checkpoint_steps": 2, "eval_steps": 2,
                         "warmup_steps": 1, "batch_size": 4},
    "23_service_eval": {"samples": 20},
    "24_service_compare": {"dev_samples": 10, "samples": 12, "bootstrap": 200},
    "31_medical_data": {},
    "32_medical_train": {"run": "smoke-medical", "train_samples": 60, "dev_samples": 12, "steps": 4, "checkpoint_steps": 2, "eval_steps": 2,
                         "warmup_steps": 1, "batch_size": 4},
    "33_medical_eval": {"samples": 12},
    "34_medical_compare": {"checkpoints": "130,520", "dev_samples": 10, "samples": 8, "bootstrap": 200, "max_new_tokens": 120},
    "41_glm_family": {"run": "smoke-family", "train_samples": 40, "samples": 12, "steps": 4, "checkpoint_steps": 2, "warmup_steps": 1,
                      "batch_size": 2, "bootstrap": 100},
    "43_serve": {"requests": 4, "slots": 2, "max_new_tokens": 12},
}


def cells(path: Path, kind: str = "") -> list[dict]:
    return [cell for cell in docs.read_notebook(path)["cells"] if kind in ("", cell["cell_type"])]


def tagged(path: Path, tag: str) -> list[dict]:
    return [cell for cell in cells(path) if tag in docs.tags(cell)]


# --- how they are built ------------------------------------------------------------------------------------------

def test_all_notebooks_are_known():
    assert [path.stem for path in NOTEBOOKS] == list(CLASSES) == list(SMOKE)


@each
def test_parameters_cell_is_the_settings_class(path):
    parameters, = tagged(path, "parameters")
    assert docs.source(parameters) == settings.parameters_cell(CLASSES[path.stem])
    for line in docs.source(parameters).splitlines():  # papermill reads a line up to its #, and drops one with a second = before it
        ast.literal_eval(line.split(" = ", 1)[1].rsplit("  # ", 1)[0])
    everything = cells(path)
    assert everything.index(parameters) < everything.index(tagged(path, "setup")[0]) <= 5
    assert "read(" in docs.source(tagged(path, "setup")[0]) and "show(settings)" in docs.source(tagged(path, "setup")[0])


@each
def test_glmlab_is_imported_before_torch(path):
    """It tells OpenMP how the threads wait, which torch reads once."""
    setup = docs.source(tagged(path, "setup")[0])
    first = {name: setup.find(f"import {name}") for name in ("torch", "peft", "transformers")}
    assert all(place < 0 or setup.find("from glmlab") < place for place in first.values())


@each
def test_papermill_understands_every_parameter(path):
    from papermill.inspection import inspect_notebook
    assert set(inspect_notebook(str(path))) == {item.name for item in settings.fields(CLASSES[path.stem])}


@each
def test_form(path):
    everything, code = cells(path), cells(path, "code")
    text = len(everything) - len(code)
    assert 30 <= len(everything) <= 70 and 0.6 * len(code) <= text <= 1.6 * len(code)
    lines = [len(docs.source(cell).splitlines()) for cell in code if "parameters" not in docs.tags(cell)]
    assert max(lines) <= 25 and 2 <= statistics.median(lines) <= 8
    first = docs.source(everything[0])
    assert re.match(rf"# {path.stem[:2]} · .+\n", first)
    assert {"you will learn", "needs", "time", "peak memory", "disk", "produces"} <= set(docs.card(docs.read_notebook(path)))
    sections = [int(n) for cell in cells(path, "markdown") for n in re.findall(r"^## (\d+)", docs.source(cell), re.MULTILINE)]
    assert sections == list(range(1, len(sections) + 1)) and len(sections) >= 4
    assert tagged(path, "next") and tagged(path, "cost")
    assert 2 <= len(tagged(path, "exercise")) == len(tagged(path, "solution")) == len(tagged(path, "check")) <= 4
    ends = [docs.source(cell) for cell in cells(path, "markdown")][-6:]
    assert any("What we learned" in end for end in ends) and any("<details>" in end for end in ends)


@each
def test_nothing_of_one_machine(path):
    for cell in cells(path, "code"):
        text = docs.source(cell)
        ast.parse(text)
        assert not re.search(r"^\s*[!%]", text, re.MULTILINE), text
        assert "../" not in text and not re.search(r"[\"'](/|~/|[A-Z]:\\\\)[a-zA-Z]", text), text
    assert "/home/" not in path.read_text(encoding="utf-8")


@each
def test_saved_stripped(path):
    counts = []
    for cell in cells(path, "code"):
        if "keep_output" in docs.tags(cell):
            assert cell["outputs"] and cell["execution_count"], "a checked cell without output checks nothing"
            assert docs.source(cell).startswith("# NBVAL_CHECK_OUTPUT\n")
            counts.append(cell["execution_count"])
        else:
            assert not cell["outputs"] and cell["execution_count"] is None
            assert "NBVAL_CHECK_OUTPUT" not in docs.source(cell)
    assert counts == sorted(set(counts))
    assert path.stat().st_size < 100_000 and docs.as_text(docs.read_notebook(path)) == path.read_text(encoding="utf-8")


@each
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", docs.source(cell)):
            assert target.startswith("https://") or (path.parent / target).exists(), target


def test_generated_files_are_up_to_date():
    assert docs.write(check=True) == [], "run: python -m glmlab docs"


# --- exercises ---------------------------------------------------------------------------------------------------

@each
def test_a_check_fails_on_the_stub_and_passes_on_the_solution(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for cell in cells(path, "code"):
        if {"parameters", "setup"} & set(docs.tags(cell)):
            exec(docs.source(cell), namespace)
    for solution, check in zip(tagged(path, "solution"), tagged(path, "check")):
        assert docs.BEGIN in docs.source(solution) and docs.END in docs.source(solution)
        with pytest.raises(Exception):
            attempt = dict(namespace)
            exec(docs.stub(docs.source(solution)), attempt)
            exec(docs.source(check), attempt)
        exec(docs.source(solution), namespace)
        exec(docs.source(check), namespace)


# --- they run ----------------------------------------------------------------------------------------------------

def smoke_copy(path: Path, folder: Path) -> Path:
    """A copy of a notebook with small parameters, for nbval, which takes none."""
    notebook = docs.read_notebook(path)
    for cell in notebook["cells"]:
        if "parameters" in docs.tags(cell):
            cell["source"] = settings.parameters_cell(CLASSES[path.stem], **SMOKE[path.stem])
    copy = folder / path.name
    copy.write_text(docs.as_text(notebook), encoding="utf-8")
    return copy


def environment(home: Path) -> dict:
    return os.environ | {"GLMLAB_HOME": str(home), "OMP_NUM_THREADS": "2", "PYTHONPATH": ""}


@each
def test_runs_cell_by_cell(path, tmp_path):
    """nbval, lax: no cell fails, and the cells that keep their output give it again."""
    copy = smoke_copy(path, tmp_path)
    done = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(copy)],
                          cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


def papermill(name: str, folder: Path, **parameters):
    arguments = [item for key, value in parameters.items() for item in ("-p", key, str(value))]
    return subprocess.run([sys.executable, "-m", "papermill", str(paths.notebooks(f"{name}.ipynb")), "out.ipynb", "--no-progress-bar", *arguments],
                          cwd=folder, env=environment(folder), capture_output=True, text=True)


def test_the_way_from_data_to_comparison(tmp_path):
    """Own files with the real header, by -p and relative to a foreign folder: data, training, evaluation, comparison."""
    from glmlab.tasks import calls
    for split, count in (("train", 120), ("dev", 40), ("test", 60)):
        (tmp_path / f"{split}.csv").write_text(calls.as_csv(calls.make(split, count, seed=5)), encoding="utf-8")
    train = SMOKE["02_train"] | {"run": "mine", "train_file": "train.csv", "dev_file": "dev.csv"}
    steps = [("01_data", {"train_file": "train.csv", "dev_file": "dev.csv", "test_file": "test.csv"}), ("02_train", train),
             ("03_eval", {"run": "mine", "checkpoint": -1, "test_file": "test.csv"}),
             ("04_compare", {"run": "mine", "train_file": "train.csv", "dev_file": "dev.csv", "test_file": "test.csv", "bootstrap": 200})]
    for name, parameters in steps:
        done = papermill(name, tmp_path, **parameters)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    results = json.loads((tmp_path / "reports/intent/eval/mine-4/results.json").read_text(encoding="utf-8"))
    assert results["total_samples"] == 60 and len(results["predictions"]) == 60
    assert (tmp_path / "reports/intent/eval/mine-4/confusion_matrix.png").stat().st_size > 50_000
    assert len(json.loads((tmp_path / "reports/intent/compare/comparison.json").read_text(encoding="utf-8"))["systems"]) >= 5


#: (notebook, rows of a user's own): triples with a relation of their own and a row without answer; service without scene and history, as document 002 has them; service with nothing but conversations.
OWN_ROWS = [
    ("11_triplets_data", [{"input": "甲没有答案。"}, *({"text": f"{name}和李四是同学。", "spo_list": [{"subject": name, "predicate": "同学", "object": "李四"}]}
                                                for name in ("张三", "王五", "赵六", "钱七"))]),
    ("21_service_data", [{"instruction": f"用户问：第{number}件怎么退？", "input": "", "output": f"您好！\n1. 打开第{number}单\n2. 申请退货"}
                         for number in range(4)]),
    ("21_service_data", [{"messages": [{"role": ("user", "assistant")[turn % 2], "content": f"第{number}件的第{turn}句"} for turn in range(4)]}
                         for number in range(4)]),
]


@pytest.mark.parametrize("name, own", OWN_ROWS)
def test_a_small_file_of_ones_own(name, own, tmp_path):
    """A data notebook runs to its end on any file that can be read, whatever the course's own rows have besides."""
    rows = {"train": own[:-2], "dev": own[-2:-1], "test": own[-1:]}
    for split, found in rows.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    done = papermill(name, tmp_path, **{f"{split}_file": f"{split}.json" for split in rows})
    assert done.returncode == 0, done.stderr[-3000:]


def test_relations_of_ones_own_are_kept_with_the_run(tmp_path):
    """Training notebook -> run.json and checkpoint -> evaluation notebook and the extractor, which can copy under the run's own list."""
    rows = [{"text": f"{a}{b}和李四是同学。", "spo_list": [{"subject": a + b, "predicate": "同学", "object": "李四"}]} for a in "张王赵" for b in "三五六七"]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [{"input": "甲没有答案。"}, *rows]), encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text(json.dumps({"input": "陈一和李四是同学。", "output": "(陈一, 同学, 李四)"}, ensure_ascii=False), encoding="utf-8")
    train = SMOKE["12_triplets_train"] | {"run": "mine", "train_file": "own.jsonl", "dev_file": "dev.jsonl"}
    for name, parameters in (("12_triplets_train", train), ("13_triplets_eval", {"run": "mine", "test_file": "dev.jsonl"})):
        done = papermill(name, tmp_path, **parameters)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    run = tmp_path / "data/runs/mine"
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]["relations"]
    assert told[-1] == "同学" and json.loads((run / "checkpoint-4/glmlab.json").read_text(encoding="utf-8"))["relations"] == told
    results = json.loads((tmp_path / "reports/triplets/eval/mine-4/results.json").read_text(encoding="utf-8"))
    assert [entry["relation"] for entry in results["per_relation"]] == told


@pytest.mark.parametrize("name, parameters, said", [
    ("03_eval", {"checkpiont": 5000}, ["checkpiont: unknown parameter, did you mean checkpoint?", "parameters: run, checkpoint, samples"]),
    ("03_eval", {"checkpoint": 700}, ["checkpoint 700 not found in data/runs/intent-reference; there are: 500, 1000, 2000, 3000, 4000, 5000"]),
    ("02_train", {"base": "glm5"}, ["unknown base 'glm5'", "glm4-tiny"]),
    ("01_data", {"train_file": "nowhere.csv"}, ["nowhere.csv"]),
])
def test_what_is_wrong_is_said(name, parameters, said, tmp_path):
    done = papermill(name, tmp_path, **parameters)
    assert done.returncode != 0
    for words in said:
        assert words in done.stderr, done.stderr[-3000:]
