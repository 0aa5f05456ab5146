"""The backends that a configuration can name."""

from typing import Annotated

from pydantic import Field

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.demo import DemoBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.backend import MegatronBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend

AnyBackend = Annotated[
    DemoBackend | MegatronBackend | TorchtitanBackend | HuggingFaceBackend | CommandBackend,
    Field(discriminator="kind"),
]
