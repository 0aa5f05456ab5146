"""The backends that a configuration can name: those of autoexp, and of installed packages."""

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field

from autoexp.backends.base import BackendBase
from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.demo import DemoBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.backend import MegatronBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend
from autoexp.extensions import entry_points

if TYPE_CHECKING:
    AnyBackend = Annotated[
        DemoBackend | MegatronBackend | TorchtitanBackend | HuggingFaceBackend | CommandBackend,
        Field(discriminator="kind"),
    ]
else:
    _OURS = (DemoBackend, MegatronBackend, TorchtitanBackend, HuggingFaceBackend, CommandBackend)
    _KINDS = {kind for backend in _OURS for kind in entry_points.kinds(backend)}
    _INSTALLED = entry_points.installed(
        entry_points.BACKENDS, BackendBase, entry_points.kinds, _KINDS
    )
    AnyBackend = Annotated[Union[(*_OURS, *_INSTALLED)], Field(discriminator="kind")]


@cache
def _classes() -> dict[str, type[BackendBase]]:
    union = get_args(AnyBackend)[0]
    return {kind: found for found in get_args(union) for kind in entry_points.kinds(found)}


def backend_class(kind: Any) -> type[BackendBase] | None:
    """The backend of a kind; None for an unknown one."""
    return _classes().get(kind) if isinstance(kind, str) else None
