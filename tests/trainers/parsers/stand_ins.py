"""Stands in for packages that a trainer imports for GPUs alone: its parser is run on a CPU."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import typing


class Anything:
    """Whatever is asked of it."""

    def __call__(self, *arguments, **keywords):
        decorates = len(arguments) == 1 and callable(arguments[0]) and not keywords
        return arguments[0] if decorates else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __mro_entries__(self, bases):
        return ()


class StandIn(types.ModuleType):
    """A module of whatever is asked for."""

    __version__ = "3.9.9"
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for packages by their names."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def without_triton():
    """Stand in for triton, once torch has noticed and remembers that there is none."""
    for name in (
        "torch._dynamo",
        "torch._inductor.runtime.triton_compat",
        "torch._inductor.runtime.triton_heuristics",
        "torch.utils._triton",
        "torch.utils.flop_counter",
    ):
        importlib.import_module(name)
    known = importlib.import_module("torch.utils._triton")
    known.has_triton_package()
    known.has_triton()
    # Python 3.11 has none.
    vars(typing)["override"] = importlib.import_module("typing_extensions").override
    sys.meta_path.insert(0, Finder("triton"))


def without_resiliency():
    """Hide nvidia-resiliency-ext: Megatron-LM can do without it, and refuses one before 0.6."""
    sys.modules["nvidia_resiliency_ext"] = None
