"""The judges of the book's exercises, one module a chapter, each imported when first used."""

import importlib
import re
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if not re.fullmatch(r"ch\d\d", name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
