"""Output roots: each is one session's, whatever the root, the moment and the disk."""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from autoexp import claims
from autoexp.claims import Claim
from autoexp.compose import Composed, compose
from autoexp.errors import BadInput
from autoexp.session import Session
from tests.core.conftest import TINY, KilledAt, create


@pytest.fixture
def elsewhere(tmp_path: Path) -> Composed:
    """The tiny experiment, which writes outside of its session."""
    return compose("demo", [*TINY, f"project.output_root={tmp_path}/out"])


def test_of_two_sessions_of_one_id_under_two_roots_the_second_is_refused_an_output_root(
    tmp_path: Path, elsewhere: Composed
) -> None:
    first = create(elsewhere, tmp_path / "r1", session_id="lr1")
    with pytest.raises(BadInput, match=rf"is where session lr1 writes \({first}\)"):
        create(elsewhere, tmp_path / "r2", session_id="lr1")
    assert not (tmp_path / "r2").exists()
    other = compose("demo", [*TINY, f"project.output_root={tmp_path}/out/lr1"])
    with pytest.raises(BadInput, match="is where session lr1 writes"):
        create(other, tmp_path / "r2", session_id="within")
    create(elsewhere, tmp_path / "r2", session_id="lr2")

    shutil.rmtree(first)
    create(elsewhere, tmp_path / "r2", session_id="lr1")
    with pytest.raises(BadInput, match="is where session lr1 writes"):
        create(elsewhere, tmp_path / "r1", session_id="lr1")


def test_a_session_that_was_killed_in_the_making_leaves_its_output_root_free(
    tmp_path: Path, elsewhere: Composed, killed_at: KilledAt
) -> None:
    for n in itertools.count(1):
        name, root = f"s{n}", tmp_path / "r1"
        killed = killed_at(n, lambda name=name, root=root: create(elsewhere, root, session_id=name))  # type: ignore[misc]
        if (root / name).exists():
            with pytest.raises(BadInput, match="is where session"):
                create(elsewhere, tmp_path / "r2", session_id=name)
        else:
            assert Session.load(create(elsewhere, tmp_path / "r2", session_id=name))
        if not killed:
            break
    assert n > 5


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_take_a_directory_that_was_left_at_once_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    place = tmp_path / "out"
    assert claims.take(place, Claim(str(tmp_path / "gone"), "0")) is None
    sessions = [tmp_path / f"s{n}" for n in range(5)]
    for n, session in enumerate(sessions):
        session.mkdir()
        (session / "session.json").write_text(json.dumps({"nonce": str(n)}))
    children = []
    for n, session in enumerate(sessions):
        child = os.fork()
        if child == 0:
            os._exit(0 if claims.take(place, Claim(str(session), str(n))) is None else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 1, 1, 1, 1]
    found = claims.holder(place)
    assert found is not None and found.session == str(sessions[codes.index(0)])


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"session": 1}', "\0"])
def test_whatever_stands_in_a_claim_is_never_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_S", 0.0 if text == "" else 10.0)
    (tmp_path / claims.NAME).write_text(text)
    assert claims.holder(tmp_path) is None
    assert claims.take(tmp_path, Claim(str(tmp_path / "s"), "1")) is None
    assert (tmp_path / f"{claims.NAME}.2").exists()
