"""GLM Lab: fine-tune Chinese GLM models, measure what it brought, serve the result.

The notebooks import this package; every station is a plain function. The names below load on first use, so that
`import glmlab` stays fast and needs no torch.
"""

import os
import warnings
from importlib import import_module

# Threads of a parallel loop sleep while they wait. By default they spin, and two programs on the same cores then stop each other:
# a training step on two busy cores was measured at 11.6 s spinning and 1.5 s sleeping. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in notebooks without ipywidgets

__version__ = "0.1.0"
_EXPORTS = {"load_base": "glmlab.models", "load_finetuned": "glmlab.models", "IntentClassifier": "glmlab.predict",
            "TripletExtractor": "glmlab.predict"}
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
