"""Where a described trainer's checkpoints lie, and how a complete one is recognized."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from autoexp.backends.checkpoints import Layout
from autoexp.backends.command.placeholders import pattern_of
from autoexp.model import FrozenModel


class Checkpoints(FrozenModel):
    """Location of checkpoints below the save directory, and how a complete one is recognized."""

    name: str = Field(
        "", description="name of the file or folder, with `{iteration}`; `*` matches anything"
    )
    one_file: str | None = Field(
        None,
        pattern=r"^[^/{}*]+$",
        description="in place of a name, the one file that each save overwrites: the job keeps a "
        "copy of each beside it, as `ckpt-1000.pt` of `ckpt.pt`",
    )
    iteration_name: str | None = Field(
        None,
        description="what the iteration is called in that file, by torch.save or of JSON",
    )
    folder: str = Field("", description="folder below the save directory that contains them")
    must_exist: tuple[str, ...] = Field(
        (), description="patterns of files inside, each of which has to match"
    )
    must_not_exist: tuple[str, ...] = Field(
        (), description="patterns that have to match nothing; `../{name}-unfinished` lies beside it"
    )
    must_parse: tuple[str, ...] = Field((), description="files inside that have to be valid JSON")
    tracker: str | None = Field(
        None, description="file in the folder that names the newest iteration, written last"
    )
    renamed: bool = Field(
        False,
        description="checkpoints get their name once they are complete, and no file of one is "
        "opened for writing again: a branch is seeded by hard links; by copies otherwise",
    )
    overwritten: bool = Field(
        False, description="files of old checkpoints are written again: copies, `renamed` or not"
    )
    trusts_torn: bool = Field(
        True, description="the trainer might resume from a torn one: move those aside before"
    )

    @model_validator(mode="after")
    def _tells_complete_from_torn(self) -> Self:
        if bool(self.name) == (self.one_file is not None):
            raise ValueError("give `name`, or `one_file` where each save overwrites the one before")
        if (self.one_file is None) != (self.iteration_name is None):
            raise ValueError("`one_file` and `iteration_name` belong together")
        pattern_of(self.names)
        if self.one_file is not None:
            return self._copied_as_they_are()
        signs = (self.must_exist, self.must_not_exist, self.must_parse, self.tracker, self.renamed)
        if not any(signs):
            raise ValueError(
                "nothing tells a complete checkpoint from a torn one: give `must_exist`, "
                "`must_not_exist`, `must_parse` or `tracker`, or `renamed: true`"
            )
        return self

    def _copied_as_they_are(self) -> Self:
        """Refuse what would be said of copies, which are always complete."""
        said = self.model_fields_set - {"one_file", "iteration_name", "folder"}
        if said:
            raise ValueError(f"`{min(said)}` does not go with `one_file`")
        return self

    @property
    def names(self) -> str:
        """Names of checkpoints, with `{iteration}`."""
        if self.one_file is None:
            return self.name
        path = Path(self.one_file)
        return f"{path.stem}-{{iteration}}{path.suffix}"

    @property
    def layout(self) -> Layout:
        if self.one_file is not None:
            # The job renames its copies into place, and nobody writes into them.
            return Layout(name=pattern_of(self.names), overwritten=self.one_file, renames=True)
        return Layout(
            name=pattern_of(self.name),
            must_exist=self.must_exist,
            must_not_exist=self.must_not_exist,
            must_parse=self.must_parse,
            tracker=self.tracker,
            renames=self.renamed and not self.overwritten,
        )
