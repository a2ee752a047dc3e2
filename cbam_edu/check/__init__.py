"""The judges of the book's exercises, one module a chapter: ``check.ch01.reweight(answer)``."""

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a chapter's judges when they are first asked for."""
    full = f"{__name__}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
