"""Where things are, and how files are written: whole or not at all."""

import errno
import json
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the repository, because the package is installed with `pip install -e .`


def home() -> Path:
    """The folder that receives what a run writes: GLMLAB_HOME if set (read-only installs, tests), else the repository."""
    return Path(os.environ["GLMLAB_HOME"]).expanduser().resolve() if os.environ.get("GLMLAB_HOME") else ROOT


def data(*parts) -> Path:
    """A path under data/: the sets that ship with the course."""
    return ROOT.joinpath("data", *parts)


def models(*parts) -> Path:
    """A path under data/models: the tiny bases that ship with the course."""
    return data("models", *parts)


def runs(*parts) -> Path:
    """A path under data/runs: run folders. With GLMLAB_HOME a shipped run is still found unless home has one of its name."""
    moved = home().joinpath("data", "runs", *parts)
    shipped = data("runs", *parts)
    return shipped if parts and not moved.exists() and shipped.exists() else moved


def reports(*parts) -> Path:
    """A path under reports/: executed notebooks, figures, metrics."""
    return home().joinpath("reports", *parts)


def notebooks(*parts) -> Path:
    """A path under notebooks/."""
    return ROOT.joinpath("notebooks", *parts)


def shown(path) -> str:
    """A path as a person wants to read it: relative to the repository, else to the working folder, else as given."""
    full = Path(os.path.abspath(path))
    for base in (ROOT, Path.cwd()):
        if full.is_relative_to(base):
            return full.relative_to(base).as_posix()
    return str(path)


def write_bytes(path, content: bytes) -> Path:
    """Write a file whole or not at all: a temporary file beside it, then `os.replace`. Makes the folder.

    Errors: OSError that says what is wrong and what to do; the file that was there before is untouched then.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only here
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(error.errno, _why(path, len(content), error)) from error
        raise
    return path


def write_text(path, text: str) -> Path:
    """Write UTF-8 text atomically; errors as in `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path, obj) -> Path:
    """Write JSON atomically: UTF-8, Chinese as it is, indented by 2. NaN is refused (ValueError): it is not JSON."""
    return write_text(path, json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def _mode(path: Path) -> int:
    """The permissions of the file to be replaced, else what the umask leaves of 666 (mkstemp gives 600)."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _why(path: Path, size: int, error: OSError) -> str:
    remedy = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
        errno.EACCES: "no permission to write there; choose another folder, or set GLMLAB_HOME to one of yours",
        errno.EROFS: "the disk is read-only; set GLMLAB_HOME to a folder of yours",
        errno.ENOTDIR: "a part of the path is a file; move it away or choose another folder",
        errno.EEXIST: "a part of the path is a file; move it away or choose another folder",
        errno.EISDIR: "there is a folder of this name; move it away or choose another name",
    }.get(error.errno, error.strerror or str(error))
    return f"cannot write {shown(path)} ({size:,} bytes): {remedy}"
