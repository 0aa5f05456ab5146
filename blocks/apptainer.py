"""An Apptainer container that trainings run in."""

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from autoexp.resources.containers import Apptainer as ContainerSettings


class ApptainerContainer(Block):
    """An image and what a training may see of the node: the settings of `apptainer exec`.

    Example:
        Where an experiment names the block, `container: {block: megatron}`, it trains in there. In
        code:
        ```python
        from autoexp.blocks import ApptainerContainer

        container = ApptainerContainer.load("BLOCK_NAME")
        container.settings.image
        ```
    """

    _block_type_name = "autoexp Apptainer container"
    _block_type_slug = "autoexp-apptainer-container"
    _documentation_url = HttpUrl("https://apptainer.org/docs/user/latest/")
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/"
        "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"
    )

    settings: ContainerSettings = Field(
        title="Settings",
        description="The image, what it sees of the node, and its variables: no secrets.",
    )
