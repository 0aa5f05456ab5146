"""Pinned checkpoints: all of one or nothing, whatever its trainer deletes meanwhile."""

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.backends import pins
from autoexp.backends.checkpoints import Layout
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.errors import SessionError

NAME = re.compile("ck_(?P<iteration>[0-9]+)")
FILES = ("a.bin", "done", "shards/b.bin", "shards/c.bin")
COMPLETE = ("done",)


def saved(root: Path) -> FoundCheckpoint:
    path = root / "ck_100"
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode() * 100)
    return FoundCheckpoint(100, path)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """`between(hook)` calls it with the number of every look at a file, link and copy before it."""
    steps = itertools.count(1)
    real_link, real_copied, real_sizes = os.link, pins._copied, pins._sizes

    def use(hook: Callable[[int], None]) -> None:
        def link(one: str, other: str) -> None:
            hook(next(steps))
            real_link(one, other)

        def copied(one: str, other: str) -> int:
            hook(next(steps))
            return real_copied(one, other)

        def sizes(path: Path, above: tuple[tuple[int, int], ...]):  # type: ignore[no-untyped-def]
            hook(next(steps))
            yield from real_sizes(path, above)

        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(pins, "_copied", copied)
        monkeypatch.setattr(pins, "_sizes", sizes)

    return use


def no_links(one: str, other: str) -> None:
    raise OSError(errno.EPERM, "no hard links", one, None, other)


@pytest.mark.parametrize(("renames", "has_links"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("victim", ["shards/c.bin", "."])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_branch_begins_from_all_of_a_checkpoint_or_not_at_all_whenever_its_trainer_deletes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[Callable[[int], None]], None],
    renames: bool,
    has_links: bool,
    victim: str,
    goes_on: bool,
) -> None:
    layout = Layout(NAME, must_exist=COMPLETE, renames=renames)
    looked = len(FILES) + 2  # of files and folders: what is deleted before that was never known
    now: list[int] = []
    found, last = saved(tmp_path / "0"), 10**9

    def hook(number: int) -> None:
        now.append(number)
        doomed = found.path / victim if number == last else found.path
        if number == last or (goes_on and number == last + 1):
            shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink(missing_ok=True)

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    between(hook)
    layout.seed(found, tmp_path / "b0")
    assert layout.scan(tmp_path / "b0").complete
    total, outcomes = len(now), set()
    for n in range(looked + 1, total + 1):
        found, last, branch = saved(tmp_path / str(n)), now[-1] + n, tmp_path / f"b{n}"
        try:
            layout.seed(found, branch)
        except SessionError as error:
            outcomes.add("given up")
            assert "deleted while it was pinned" in str(error)
            assert not list(branch.iterdir())
        else:
            outcomes.add("whole")
            (pinned,) = layout.scan(branch).complete
            assert {
                name: (pinned.path / name).read_bytes() for name in pins.contents(pinned.path)
            } == {name: name.encode() * 100 for name in FILES}
            assert {path.name for path in branch.iterdir()} == {"ck_100", pins._MANIFEST}
    assert outcomes == {"given up", "whole"}


def test_a_checkpoint_that_is_still_written_is_pinned_again_as_it_is_in_the_end(
    tmp_path: Path, between: Callable[[Callable[[int], None]], None]
) -> None:
    found = saved(tmp_path)

    def hook(number: int) -> None:
        if number == 14:
            (found.path / "a.bin").write_bytes(b"longer" * 1000)
            (found.path / "late.bin").write_bytes(b"late")

    between(hook)
    Layout(NAME, must_exist=COMPLETE).seed(found, tmp_path / "branch")
    pinned = tmp_path / "branch" / "ck_100"
    assert pins.contents(pinned) == pins.contents(found.path)
    assert (pinned / "late.bin").exists()


def test_one_that_is_not_complete_any_more_is_given_up(tmp_path: Path) -> None:
    found = saved(tmp_path)
    (found.path / "done").unlink()
    with pytest.raises(SessionError, match="no longer complete"):
        Layout(NAME, must_exist=COMPLETE).seed(found, tmp_path / "branch")
    shutil.rmtree(found.path)
    with pytest.raises(SessionError, match="ck_100 is missing"):
        Layout(NAME, must_exist=COMPLETE).seed(found, tmp_path / "branch")


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize("has_links", [True, False])
def test_links_in_a_checkpoint_become_what_they_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: bool, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    found = saved(tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text("tokens")
    (found.path / "tokenizer.json").symlink_to("../tokenizer.json")
    (found.path / "shards" / "again").symlink_to("../a.bin")
    (found.path / "same").symlink_to("shards")
    layout = Layout(NAME, must_exist=COMPLETE, renames=renames)
    layout.seed(found, tmp_path / "far" / "away" / "branch")
    shutil.rmtree(tmp_path / "run")
    pinned = tmp_path / "far" / "away" / "branch" / "ck_100"
    assert (pinned / "tokenizer.json").read_text() == "tokens"
    assert (pinned / "shards" / "again").read_bytes() == b"a.bin" * 100
    assert (pinned / "same" / "b.bin").read_bytes() == b"shards/b.bin" * 100
    assert not any(path.is_symlink() for path in pinned.rglob("*"))
    assert layout.pin_changes(pinned.parent).seed == ()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../gone.bin", "odd: a link to ../gone.bin, which cannot be followed"),
        ("odd", "odd: a link to odd, which cannot be followed"),
        (".", "odd: a link to a folder that it lies in"),
        ("..", "a link to a folder that it lies in"),
        (None, "odd: neither a file nor a folder"),
    ],
)
def test_a_link_that_leads_nowhere_or_round_and_round_is_refused_with_one_sentence(
    tmp_path: Path, target: str | None, words: str
) -> None:
    found = saved(tmp_path / "run")
    if target is None:
        os.mkfifo(found.path / "odd")
    else:
        (found.path / "odd").symlink_to(target)
    with pytest.raises(SessionError, match=re.escape(words)):
        Layout(NAME, must_exist=COMPLETE).seed(found, tmp_path / "branch")
    assert list((tmp_path / "branch").iterdir()) == []
