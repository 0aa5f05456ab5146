"""The backends that a configuration can name."""

from typing import Annotated

from pydantic import Field

from autoexp.backends.demo import DemoBackend
from autoexp.backends.megatron import MegatronBackend

AnyBackend = Annotated[DemoBackend | MegatronBackend, Field(discriminator="kind")]
