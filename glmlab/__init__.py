"""GLM Lab: fine-tune Chinese GLM models, measure what it brought, serve the result.

The notebooks import this package; every station is a plain function. The names below load on first use, so that
`import glmlab` stays fast and needs no torch.
"""

from importlib import import_module

__version__ = "0.1.0"
_EXPORTS = {"load_base": "glmlab.models", "load_finetuned": "glmlab.models", "IntentClassifier": "glmlab.predict"}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    """Import an exported name when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'glmlab' has no attribute {name!r}; it exports {', '.join(__all__)}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
