"""The node adapters without ComfyUI: core's names stand for empty classes, and nothing that needs core can run."""

import importlib
import sys
import types

import fusionframes

PACKAGE = f"{fusionframes.__name__}.nodes"


class _Names(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def adapter(name: str) -> types.ModuleType:
    """Import a module of ``nodes/adapters`` without running the package of nodes, which wants core."""
    before = {key: value for key, value in sys.modules.items() if key.startswith(PACKAGE)}
    for key in before:
        del sys.modules[key]
    package = types.ModuleType(PACKAGE)
    package.__path__ = [f"{fusionframes.__path__[0]}/nodes"]
    compat = _Names(f"{PACKAGE}._compat")
    try:
        sys.modules[PACKAGE], sys.modules[compat.__name__] = package, compat
        return importlib.import_module(f"{PACKAGE}.adapters.{name}")
    finally:
        for key in [key for key in sys.modules if key.startswith(PACKAGE)]:
            del sys.modules[key]
        sys.modules.update(before)
