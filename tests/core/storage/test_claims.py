"""Output roots: each is one session's, whatever the root, the moment and the disk."""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from autoexp.config.compose import Composed, compose
from autoexp.errors import BadInput
from autoexp.session import remove
from autoexp.session.create import claim_of, retake_outputs
from autoexp.session.session import Session
from autoexp.storage import claims
from autoexp.storage.claims import Claim
from tests.builders import TINY, create
from tests.killing import KilledAt


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


def test_output_roots_of_sessions_that_were_never_made_do_not_pile_up(
    tmp_path: Path, elsewhere: Composed, killed_at: KilledAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for n in itertools.count(1):
        name = f"s{n}"
        if not killed_at(n, lambda name=name: create(elsewhere, tmp_path / "r", session_id=name)):  # type: ignore[misc]
            break
    create(elsewhere, tmp_path / "r", session_id="last")
    made = {path.name for path in (tmp_path / "r").glob("[a-z]*")}
    assert {path.name for path in out.iterdir()} == made

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Session, "save_meta", full)
    with pytest.raises(BadInput, match="No space left"):
        create(elsewhere, tmp_path / "r", session_id="more")
    assert {path.name for path in out.iterdir()} == made


def test_a_draft_of_any_name_takes_no_output_root_from_a_session(
    tmp_path: Path, elsewhere: Composed
) -> None:
    root = tmp_path / "r"
    create(elsewhere, root, session_id="s1")
    mark = tmp_path / "out" / "s1" / claims.NAME
    draft = Path(json.loads(mark.read_text())["draft"])
    for end in ("s1", "", "..", "."):
        dead = draft.name.replace(f"-{os.getpid()}-s1", f"-{2**22 + 1}-{end}")
        (root / dead).mkdir(parents=True, exist_ok=True)
    before = mark.read_text()
    mark.write_text(before.replace(f"-{os.getpid()}-s1", f"-{2**22 + 1}-s1"))
    assert Session.load(create(elsewhere, root, session_id="s2"))
    assert mark.exists()


def test_what_was_killed_in_the_making_on_another_host_holds_an_output_root_for_a_day(
    tmp_path: Path, elsewhere: Composed
) -> None:
    root = tmp_path / "r"
    draft = root / ".new-login2-77-s1"
    draft.mkdir(parents=True)
    draft.chmod(0o700 | remove.MARK)
    mine = Claim(str(root / "s1"), "0", str(draft))
    assert claims.take(tmp_path / "out" / "s1", mine) is None
    with pytest.raises(BadInput, match="is where session s1 writes"):
        create(elsewhere, root, session_id="s1")
    os.utime(draft, (0, 0))
    assert Session.load(create(elsewhere, root, session_id="s1"))
    assert not draft.exists()


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
            try:
                os._exit(0 if claims.take(place, Claim(str(session), str(n))) is None else 1)
            finally:
                os._exit(3)
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


def test_lost_marks_are_written_again_and_outputs_that_another_session_has_by_now_refused(
    tmp_path: Path, elsewhere: Composed
) -> None:
    first = create(elsewhere, tmp_path / "r1", session_id="lr1")
    outputs = tmp_path / "out" / "lr1"
    for _ in range(2):
        retake_outputs(Session.load(first))
        assert [path.name for path in outputs.iterdir()] == [claims.NAME], "its own already"
        shutil.rmtree(outputs)
    retake_outputs(Session.load(first))
    (outputs / claims.NAME).unlink()
    (outputs / "tiny").mkdir()
    retake_outputs(Session.load(first))
    assert claims.holder(outputs) == claim_of(Session.load(first))

    shutil.rmtree(outputs)
    first.rename(tmp_path / "away")
    second = create(elsewhere, tmp_path / "r2", session_id="lr1")
    (tmp_path / "away").rename(first)
    with pytest.raises(BadInput, match=rf"{outputs} is where session {second} writes by now"):
        retake_outputs(Session.load(first))
    retake_outputs(Session.load(second))
    shutil.rmtree(second)
    retake_outputs(Session.load(first))
    assert claims.holder(outputs) == claim_of(Session.load(first))


def test_what_is_claimed_while_its_session_removes_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = tmp_path / "out", Claim(str(tmp_path / "t"), "2")
    mine = Claim(str(tmp_path / "s"), "1")
    assert claims.take(place, mine) is None
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert claims.take(place, other) is None
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert not claims.release(place, mine)
    assert claims.standing(place, lambda _: True) == other


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_mark_of_another_user_that_cannot_be_read_counts(tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_mode & 0o5 != 0o5:  # pytest's own folders, however many there are
            above.chmod(0o755)
    place = tmp_path / "out"
    assert claims.take(place, Claim(str(tmp_path / "s"), "1")) is None
    place.chmod(0o777)
    (place / claims.NAME).chmod(0o600)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            held = claims.take(place, Claim(str(tmp_path / "t"), "2"))
            os._exit(0 if held is not None and "another user's" in held.title else 1)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in place.iterdir()] == [claims.NAME]


def test_a_directory_goes_with_its_session_if_it_holds_marks_alone(tmp_path: Path) -> None:
    gone, mine = Claim(str(tmp_path / "gone"), "0"), Claim(str(tmp_path / "s"), "1")
    place = tmp_path / "out" / "s"
    assert not claims.release(place, mine)
    assert claims.take(place, gone) is None
    assert not claims.release(place, mine), "not this one's"
    assert claims.take(place, mine) is None
    (place / "tiny").mkdir()
    assert not claims.release(place, mine)
    assert len(list(place.iterdir())) == 3
    (place / "tiny").rmdir()
    link = tmp_path / "link"
    link.symlink_to(place)
    assert not claims.release(link, mine)
    assert claims.release(place, mine)
    assert list((tmp_path / "out").iterdir()) == []


def test_whoever_takes_a_directory_while_its_session_removes_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    mine, other = Claim(str(tmp_path / "s"), "1"), Claim(str(tmp_path / "t"), "2")
    assert claims.take(place, mine) is None
    make = claims._create

    def late(path: Path, text: str) -> None:
        monkeypatch.setattr(claims, "_create", make)
        assert claims.release(place, mine)
        make(path, text)

    monkeypatch.setattr(claims, "_create", late)
    assert claims.take(place, other) is None
    assert [path.name for path in place.iterdir()] == [claims.NAME]
    assert claims.standing(place, lambda _: True) == other
