"""README.md and README.zh.md: tables that are tables, links that lead somewhere, and the same commands in both languages."""

import re
from collections import Counter

import pytest

from glmlab import paths

NAMES = ["README.md", "README.zh.md"]
COMMAND = re.compile(r"python |pip |papermill |jupyter |apt-get |iconv |export |import |-[fp] |--|GLMLAB_|HF_|base_url")


def text(name: str) -> str:
    return (paths.ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> Counter:
    """What a person may copy: the lines of the code blocks without their comments, and the code in running text that is a command."""
    blocks = re.findall(r"```\w+\n(.*?)```", text(name), re.DOTALL)
    lines = [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(name), flags=re.DOTALL))
    return Counter(filter(None, lines)) + Counter(code for code in inline if COMMAND.match(code))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_no_gap(name):
    """Behind a blank line a row is a heading, with the rule of dashes below it; else the rest is shown as text."""
    lines = ["", *text(name).splitlines()]
    for before, line, after in zip(lines, lines[1:], [*lines[2:], ""]):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|(:?-+:?\|)+", after), f"no heading, so no table: {line[:60]}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text(name)):
        assert target.startswith("https://") or (paths.ROOT / target).exists(), target


def test_both_languages_name_the_same_commands():
    english, chinese = map(commands, NAMES)
    assert len(english) > 60
    assert english - chinese == chinese - english == Counter(), "README.md and README.zh.md differ"


def test_what_the_example_merges_loads_elsewhere():
    """The comment beside the command says so; a merged ChatGLM-6B needs this package."""
    from glmlab import models, vllm
    run, = re.findall(r"^python -m glmlab merge (\S+) ", text("README.md"), re.MULTILINE)
    assert vllm.serves(models.read_run(run)["settings"]["base"])
