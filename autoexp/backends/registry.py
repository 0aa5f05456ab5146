"""The backends that a configuration can name: those of autoexp, and of installed packages."""

import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from autoexp.backends.base import BackendBase
from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.demo import DemoBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.backend import MegatronBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend

GROUP = "autoexp.backends"
"""The entry points by which a package brings backends of its own."""

_OURS = (DemoBackend, MegatronBackend, TorchtitanBackend, HuggingFaceBackend, CommandBackend)


def _installed() -> list[type[BackendBase]]:
    """Backends of installed packages; one that cannot be used is a warning, and left out."""
    found: dict[str, type[BackendBase]] = {}
    taken = {kind for backend in _OURS for kind in _kinds(backend)}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        problem, backend = _loaded(entry)
        if backend is not None and (twice := taken & set(_kinds(backend))):
            problem, backend = f"there is a backend of kind {min(twice)} already", None
        if backend is None:
            warnings.warn(f"{GROUP}: {entry.name} = {entry.value}: {problem}", stacklevel=2)
            continue
        taken |= set(_kinds(backend))
        found[entry.name] = backend
    return list(found.values())


def _loaded(entry: EntryPoint) -> tuple[str, type[BackendBase] | None]:
    try:
        backend = entry.load()
    except Exception as error:  # whatever a package's import raises
        return f"cannot be imported ({type(error).__name__}: {error})", None
    if not isinstance(backend, type) or not issubclass(backend, BackendBase):
        return "is no subclass of autoexp.backends.base.BackendBase", None
    if not _kinds(backend):
        return "has no `kind: Literal['…'] = '…'`", None
    return "", backend


def _kinds(backend: type[BackendBase]) -> tuple[str, ...]:
    field = backend.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


if TYPE_CHECKING:
    AnyBackend = Annotated[
        DemoBackend | MegatronBackend | TorchtitanBackend | HuggingFaceBackend | CommandBackend,
        Field(discriminator="kind"),
    ]
else:
    AnyBackend = Annotated[Union[(*_OURS, *_installed())], Field(discriminator="kind")]
