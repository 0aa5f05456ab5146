"""The list of checkpoints says how large they are, whoever has measured them."""

from autoexp.reports.upkeep.checkpoints import checkpoint_list
from tests.core.story import StoryOf


def test_a_session_without_retention_says_the_sizes_of_its_checkpoints(story_of: StoryOf) -> None:
    story = story_of()
    story.log(100)
    (story.save(100) / "weights.bin").write_bytes(b"x" * 1000)
    story.look()
    assert story.session.experiment.retention is None

    found = checkpoint_list(story.session)
    size = 1000 + len("{}")
    assert [(row.iteration, row.bytes) for row in found.checkpoints] == [(100, size)]
    assert found.bytes == size
    assert story.job().sizes == {}  # what is shown changes no record
