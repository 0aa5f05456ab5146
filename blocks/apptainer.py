"""An Apptainer container that jobs run in."""

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl


class ApptainerContainer(Block):
    """An image and what a job may see of the node: the settings of `apptainer exec`.

    Example:
        ```python
        from blocks import ApptainerContainer

        container = ApptainerContainer.load("BLOCK_NAME")
        container.image
        ```
    """

    _block_type_name = "autoexp Apptainer container"
    _block_type_slug = "autoexp-apptainer-container"
    _documentation_url = HttpUrl("https://apptainer.org/docs/user/latest/")
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/"
        "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"
    )

    image: str = Field(
        min_length=1,
        title="Image",
        description="Path of a SIF file or a sandbox, or a URI that Apptainer takes.",
    )
    binds: list[str] = Field(
        default_factory=list,
        title="Binds",
        description="Paths that the container sees, as SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        title="Environment",
        description="Variables inside the container; everybody on the server sees them.",
    )
    nv: bool = Field(False, title="NVIDIA", description="Whether jobs use NVIDIA GPUs (--nv).")
    rocm: bool = Field(False, title="ROCm", description="Whether jobs use AMD GPUs (--rocm).")
    workdir: str | None = Field(
        None, title="Working directory", description="Directory inside the container; unset: as is."
    )
