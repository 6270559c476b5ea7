"""The commands that make data: the shipped files once more, and training rows of the page's feedback."""

import pytest

from glmlab import __main__ as command_line
from glmlab import chats, paths
from glmlab.tasks import service
from glmlab.tasks.service import Dialogue

GOOD, BAD, BETTER = "您好！满99元免费送货上门。", "您好！不上班。", "您好！周日9点至17点有人值班。"


@pytest.mark.parametrize("command, project, names", [("dialogues", "service", ["train.json", "dev.json", "test.json"]),
                                                     ("questions", "medical", ["train.csv", "dev.csv", "test.csv"])])
def test_the_shipped_files_once_more(command, project, names, tmp_path, capsys):
    assert command_line.main([command, str(tmp_path)]) == 0
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == paths.data(project, name).read_bytes(), f"{name} is not what the course ships"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Ratings as the page leaves them, and a small training file."""
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    chats.rate("service", "demo", service.messages("能送货上门吗"), GOOD, "up")
    chats.rate("service", "demo", service.messages("周日上班吗"), BAD, "down", BETTER)
    chats.rate("service", "demo", service.messages("能开收据吗"), "您好！不能。", "down")
    return service.write(tmp_path / "train.json", [Dialogue(0, "周日上班吗", BAD)])[0]


def test_feedback_becomes_training_rows(page, tmp_path, capsys):
    out = tmp_path / "new.json"
    before = page.read_bytes()
    assert command_line.main(["feedback", "service", "--train", str(page), "--out", str(out)]) == 0
    found, problems = service.read(out)
    assert {one.question: one.answer for one in found} == {"周日上班吗": BETTER, "能送货上门吗": GOOD} and not problems
    assert page.read_bytes() == before
    said = capsys.readouterr().out
    assert "1 x rated down without a correction (left out)" in said and "1 x correction (kept)" in said
    assert f"row 1: 能送货上门吗 -> {GOOD}" in said and said.splitlines()[-1].startswith("2 rows added or corrected: ")


def test_feedback_without_out_keeps_the_old_file(page, tmp_path, capsys):
    before = page.read_bytes()
    assert command_line.main(["feedback", "service", "--train", str(page), "--feedback", str(chats.folder("service") / "feedback.jsonl")]) == 0
    assert len(service.read(page)[0]) == 2 and (tmp_path / "train.json.bak").read_bytes() == before


def test_no_feedback_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    assert command_line.main(["feedback", "service", "--out", str(tmp_path / "new.json")]) == 1
    assert "rate answers in the page first: python -m glmlab serve service" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
