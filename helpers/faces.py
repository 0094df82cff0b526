"""Package faces that import a module only when one of its names is used, so that `import helpers.clips` needs no torch.

PEP 562 lets a package compute its attributes; every wing's `__init__.py` does so with `late`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence


def late(package: str, exports: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable, Callable]:
    """Build `__all__`, `__getattr__` and `__dir__` of a package whose names live in its modules.

    Args:
        package: The package's `__name__`.
        exports: The names to export, by the module (relative to the package) that defines them.
    """
    module_of = {name: module for module, names in exports.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), __getattr__, lambda: sorted(module_of)
