"""Medical questions that cannot wait: the fixed first line that tells the reader to call for help, and the disclaimer."""

import re
import unicodedata
from functools import cache
from pathlib import Path

PATTERNS = Path(__file__).with_name("text") / "medical_emergencies.yaml"
#: In Chinese and English, for the page, the API and every notebook.
DISCLAIMER = {
    "zh": "本页内容是教学材料，由模型自动生成，可能有错，不是医疗建议，不能代替医生。身体不适请到医院就诊；"
          "遇到紧急情况请立即拨打120，心理危机请拨打12356。",
    "en": "This is teaching material: a model writes the answers, they may be wrong and are no medical advice. See a doctor if you are "
          "unwell; in an emergency call your local number at once (in China 120; for a mental-health crisis 12356).",
}


def emergency(text: str) -> str | None:
    """The fixed first line that tells the reader to call for help when a question shows an emergency, else None.

    The patterns are in text/medical_emergencies.yaml; of several kinds the first one there counts. Signs that are denied (没有胸痛), told
    of the past, of a story or of the matter in general do not count. A list of phrases is no triage: None does not mean that all is well.
    """
    marks = _emergencies()
    plain = marks["harmless"].sub(_blank, "".join(unicodedata.normalize("NFKC", re.sub(r"\n+", "。", text.strip())).lower().split()))
    for kind in marks["kinds"].values():
        searched = kind["harmless"].sub(_blank, plain) if kind["harmless"] else plain
        for sign in kind["signs"]:
            if any(_meant(searched, *found.span(), kind.get("firm", False)) for found in sign.finditer(searched)):
                return kind["line"]
    return None


def with_safety(question: str, answer: str) -> str:
    """The answer with the fixed first line before it where the question shows an emergency; twice is the same as once."""
    line = emergency(question)
    return answer if line is None or answer.startswith(line) else f"{line}\n{answer}"


@cache
def _emergencies() -> dict:
    """The patterns, compiled: {"story", "about", "past", "now", "not", "gone", "harmless": pattern, "kinds": {name: {line, signs, …}}}."""
    import yaml
    marks = yaml.load(PATTERNS.read_text(encoding="utf-8"), yaml.CSafeLoader)
    words = {}
    for name, pattern in marks.pop("words").items():
        words[name] = _filled(pattern, words)
    kinds = {}
    for name, kind in marks.pop("kinds").items():
        signs = [re.compile(_filled(line, words)) for line in kind["signs"].splitlines()]
        harmless = _either(kind["harmless"]) if "harmless" in kind else None
        kinds[name] = kind | {"signs": signs, "harmless": harmless}
    return {name: _either(lines) for name, lines in marks.items()} | {"kinds": kinds}


def _filled(pattern: str, words: dict[str, str]) -> str:
    return re.sub(r"\{([a-z]+)\}", lambda found: words[found[1]], pattern)


def _either(lines: str) -> re.Pattern:
    return re.compile("|".join(lines.splitlines()))


def _blank(found: re.Match) -> str:
    return "□" * len(found[0])


def _meant(text: str, start: int, end: int, firm: bool) -> bool:
    """Whether the sign at text[start:end] is neither denied nor, unless firm, of the past, a story or the matter in general."""
    marks = _emergencies()
    if marks["not"].search(text, max(0, start - 40), start) or marks["gone"].match(text, end):
        return False
    if firm:
        return True
    if marks["story"].search(_around(text, start, end, "。!?")):
        return False
    clause = _around(text, start, end, ",。;:!?")
    told = re.match(r"过(?!来|去|程|多|量|敏)", text[end:end + 2])
    return bool(marks["now"].search(clause)) or not (told or marks["about"].search(clause) or marks["past"].search(clause))


def _around(text: str, start: int, end: int, marks: str) -> str:
    """text[start:end] with what stands before and behind it up to the next of the marks."""
    head = re.search(f"[^{marks}]*$", text[max(0, start - 200):start])[0]
    return head + text[start:end] + re.match(f"[^{marks}]*", text[end:end + 200])[0]
