"""The backends that a configuration can name: those of autoexp, and of installed packages."""

from typing import TYPE_CHECKING, Annotated, Union

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
