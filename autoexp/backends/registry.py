"""The backends that a configuration can name: those of autoexp, and of installed packages."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from autoexp import extensions
from autoexp.backends.base import BackendBase
from autoexp.backends.command import CommandBackend
from autoexp.backends.demo import DemoBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.backend import MegatronBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend

if TYPE_CHECKING:
    AnyBackend = Annotated[
        DemoBackend | MegatronBackend | TorchtitanBackend | HuggingFaceBackend | CommandBackend,
        Field(discriminator="kind"),
    ]
else:
    _OURS = (DemoBackend, MegatronBackend, TorchtitanBackend, HuggingFaceBackend, CommandBackend)
    _KINDS = {kind for backend in _OURS for kind in extensions.kinds(backend)}
    _INSTALLED = extensions.installed(extensions.BACKENDS, BackendBase, extensions.kinds, _KINDS)
    AnyBackend = Annotated[Union[(*_OURS, *_INSTALLED)], Field(discriminator="kind")]
