"""What people and models wrote as Markdown for the page: shown, never obeyed. Neither HTML nor a picture comes out of it."""

import re

#: Signs that mean something in Markdown or HTML, wherever they stand; addresses, which would become links; what opens a line.
_SIGNS = re.compile(r"[\\`*_~\[\]<>&|@]|(?<=:)//|(?<=www)\.|^[ \t]*(?:[#+=-]|\d+[.)])|^[ \t]+", re.MULTILINE | re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")  # a line of a list
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")      # the line that opens a block of code
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")  # code within a line


def as_text(text: str) -> str:
    """A text that looks in the page exactly as it was typed."""
    return _SIGNS.sub(lambda found: "".join(map(_entity, found[0])), _lines(text))


def _entity(sign: str) -> str:
    return {" ": "&#160;", "\t": "&#160;" * 4}.get(sign, f"&#{ord(sign)};")  # blanks at the start of a line would be dropped


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def as_markdown(text: str) -> str:
    """An answer with its lists, bold words, links and code; HTML in it is text, a picture its own source, and a list ends where it ends."""
    out, fence, listed = [], "", False
    for line in _lines(text).split("\n"):
        if fence:
            out.append(line)
            fence = "" if re.fullmatch(rf" {{0,3}}{fence}[`~]* *", line) else fence
            continue
        if opening := _FENCE.match(line):
            fence, listed = opening[1] or opening[2], False
            out.append(re.sub("mermaid", "text", line, flags=re.IGNORECASE))  # the page would draw it, pictures from elsewhere included
            continue
        if listed and line.strip() and not line[0].isspace() and not _ITEM.match(line):
            out.append("")  # else Markdown takes the line for the rest of the last item
        listed = bool(_ITEM.match(line)) or listed and bool(line.strip()) and line[0].isspace()
        out.append(_inline(line))
    return "\n".join(out)


def _inline(line: str) -> str:
    """A line without HTML and pictures; code in it keeps its signs."""
    parts = _SPAN.split(line)  # text, backticks, code, text …
    parts[::3] = [part.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!&#91;") for part in parts[::3]]
    parts[2::3] = [f"<code>{as_text(part.strip())}</code>" for part in parts[2::3]]
    parts[1::3] = [""] * len(parts[1::3])
    return "".join(parts)
