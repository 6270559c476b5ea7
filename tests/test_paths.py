"""Files are written whole or not at all; GLMLAB_HOME moves what a run writes; errors say what to do."""

import errno
import json
import os
import stat

import pytest

from glmlab import paths


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))
    return fail


# --- writing -----------------------------------------------------------------------------------------------------

def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    assert paths.write_json(path, {"意图": [1, None]}) == path
    assert path.read_text(encoding="utf-8") == '{\n  "意图": [\n    1,\n    null\n  ]\n}\n'
    assert paths.write_text(str(path), "二") == path and path.read_bytes() == "二".encode()
    assert paths.write_bytes(path, b"\r\n\0") == path and path.read_bytes() == b"\r\n\0"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_permissions_are_those_of_an_ordinary_file_and_stay(tmp_path):
    mask = os.umask(0o027)
    try:
        path = paths.write_text(tmp_path / "a", "1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o664)
        assert stat.S_IMODE(paths.write_text(path, "2").stat().st_mode) == 0o664
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)


def test_no_json_is_written_that_is_none(tmp_path):
    path = paths.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        paths.write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError):
        paths.write_json(path, {"path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8")) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, step):
    path = paths.write_text(tmp_path / "adapter_model.safetensors", "old")
    monkeypatch.setattr(os, step, failing(errno.ENOSPC))
    with pytest.raises(OSError) as error:
        paths.write_bytes(path, b"x" * 1_234_567)
    assert error.value.errno == errno.ENOSPC
    assert "adapter_model.safetensors (1,234,567 bytes): the disk is full; free some space or choose another folder" in str(error.value)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("adapter_model.safetensors", "old")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    """The kernel's own ENOSPC, from the write itself."""
    monkeypatch.setattr(paths.tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "rest")))
    with pytest.raises(OSError, match="the disk is full"):
        paths.write_bytes(tmp_path / "a", b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = paths.write_text(tmp_path / "a", "old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        paths.write_text(path, "new")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a", "old")]


def test_half_a_file_is_never_seen_under_its_name(tmp_path, monkeypatch):
    path, seen, real = paths.write_text(tmp_path / "a", "old"), [], os.replace
    monkeypatch.setattr(os, "replace", lambda *names: seen.append((path.read_text(),
        sorted(p.name for p in tmp_path.iterdir()))) or real(*names))
    paths.write_text(path, "new")
    (before, names), = seen
    assert before == "old" and names[1] == "a" and names[0].startswith(".a.") and names[0].endswith(".part") and path.read_text() == "new"


@pytest.mark.parametrize("code, remedy", [(errno.EACCES, "no permission to write there; choose another folder, or set GLMLAB_HOME"),
                                          (errno.EROFS, "the disk is read-only; set GLMLAB_HOME"), (errno.EDQUOT, "quota"),
                                          (errno.EIO, os.strerror(errno.EIO))])
def test_each_cause_has_its_remedy(tmp_path, monkeypatch, code, remedy):
    monkeypatch.setattr(paths.tempfile, "mkstemp", lambda **_: failing(code)())
    with pytest.raises(OSError, match=remedy) as error:
        paths.write_text(tmp_path / "a.json", "12345")
    assert "cannot write" in str(error.value) and "a.json (5 bytes)" in str(error.value) and error.value.errno == code


def test_a_file_or_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "below" / "a"):
        with pytest.raises(OSError, match="a part of the path is a file; move it away"):
            paths.write_text(path, "1")
    with pytest.raises(IsADirectoryError, match="there is a folder of this name"):
        paths.write_text(tmp_path / "folder", "1")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"] and (tmp_path / "file").read_text() == "x"


# --- where things are --------------------------------------------------------------------------------------------

def test_without_home_everything_is_in_the_repository(monkeypatch):
    monkeypatch.delenv("GLMLAB_HOME", raising=False)
    assert (paths.ROOT / "pyproject.toml").is_file() and paths.home() == paths.ROOT
    assert paths.data("intent") == paths.ROOT / "data" / "intent" and paths.models("glm4-tiny") == paths.data("models", "glm4-tiny")
    assert paths.runs("x", "checkpoint-5") == paths.ROOT / "data" / "runs" / "x" / "checkpoint-5"
    assert paths.reports("intent") == paths.ROOT / "reports" / "intent"
    assert paths.notebooks("03_eval.ipynb").parent == paths.ROOT / "notebooks"
    monkeypatch.setenv("GLMLAB_HOME", "")
    assert paths.home() == paths.ROOT


def test_home_moves_what_is_written_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path / "home"))
    assert paths.reports("a") == tmp_path / "home" / "reports" / "a" and paths.runs("mine") == tmp_path / "home" / "data" / "runs" / "mine"
    assert paths.data("intent") == paths.ROOT / "data" / "intent" and paths.models() == paths.ROOT / "data" / "models"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GLMLAB_HOME", "~/lab")
    assert paths.home() == tmp_path / "lab"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLMLAB_HOME", "here")
    assert paths.home() == tmp_path / "here"


def test_a_shipped_run_is_found_unless_home_has_one_of_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path / "home"))
    shipped, own = (tmp_path / place / "data" / "runs" / "intent-reference" for place in ("repository", "home"))
    shipped.mkdir(parents=True)
    assert paths.runs("intent-reference") == shipped
    assert paths.runs() == tmp_path / "home" / "data" / "runs" and paths.runs("new") == tmp_path / "home" / "data" / "runs" / "new"
    own.mkdir(parents=True)
    assert paths.runs("intent-reference") == own


def test_a_path_as_a_person_reads_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.shown(paths.ROOT / "data" / "runs" / "x") == "data/runs/x"
    assert paths.shown(tmp_path / "my" / "a.csv") == "my/a.csv" and paths.shown("my/../a.csv") == "a.csv"
    assert paths.shown(tmp_path.parent / "b.csv") == str(tmp_path.parent / "b.csv")
