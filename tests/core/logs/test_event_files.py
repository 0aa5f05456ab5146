"""Learning rates in TensorBoard's event files, as they are appended to, cut and garbled."""

import random
import re
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from autoexp.logs import event_files
from autoexp.logs.event_files import RateFiles, RateReader, Scalar, scalars

TAG = re.compile(rb"lr(/.*)?")


def files(folder: Path) -> RateFiles:
    return RateFiles(folder, "*/events.out.tfevents.*", TAG)


def written(folder: Path, steps: range = range(10, 110, 10), tag: str = "lr") -> bytes:
    """A file as torchtitan writes it: other numbers of a step, and its rate behind them."""
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("loss_metrics/global_avg_loss", 3.0, step)
            writer.add_scalar("n_tokens_seen", 2048.0 * step, step)
            writer.add_scalar(tag, 1 / step, step)
    (path,) = folder.iterdir()
    return path.read_bytes()


def test_each_rate_is_read_once_as_the_file_grows(tmp_path: Path) -> None:
    reader = RateReader()
    assert reader.read(files(tmp_path)) == []
    whole = written(tmp_path / "elsewhere" / "one", range(1, 5))
    (tmp_path / "two").mkdir()
    path = tmp_path / "two" / "events.out.tfevents.1"
    found = []
    for cut in range(0, len(whole) + 1, 100):
        path.write_bytes(whole[:cut])
        found += reader.read(files(tmp_path))
    path.write_bytes(whole)
    found += reader.read(files(tmp_path))
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert reader.read(files(tmp_path)) == []


def test_a_file_that_is_cut_anywhere_gives_what_is_whole_and_the_rest_later(tmp_path: Path) -> None:
    whole = written(tmp_path / "one")
    found, length = scalars(whole)
    assert (len(found), length) == (30, len(whole))
    assert found[2] == Scalar(b"lr", 10, pytest.approx(0.1))
    for cut in range(len(whole)):
        first, at = scalars(whole[:cut])
        rest, end = scalars(whole[at:])
        assert (first + rest, at + end) == (found, len(whole))


def test_garbled_bytes_are_no_rates_and_raise_nothing(tmp_path: Path) -> None:
    whole = written(tmp_path / "one")
    chance = random.Random(7)
    for _ in range(2000):
        garbled = bytearray(whole)
        for _ in range(chance.randint(1, 40)):
            garbled[chance.randrange(len(garbled))] = chance.randrange(256)
        found, length = scalars(bytes(garbled))
        assert 0 <= length <= len(garbled)
        assert all(each.step >= 0 for each in found)


def test_a_record_longer_than_a_look_reads_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files, "CHUNK", 1 << 10)
    with SummaryWriter(str(tmp_path / "one")) as writer:
        writer.add_scalar("lr", 0.5, 1)
        writer.add_text("configuration", "x" * 5000, 1)
        writer.add_scalar("lr", 0.25, 2)
    reader = RateReader()
    found = [rate for _ in range(4) for rate in reader.read(files(tmp_path))]
    assert found == [(1, 0.5), (2, 0.25)]


def test_a_length_that_no_record_has_ends_the_reading_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files, "CHUNK", 1 << 10)
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "events.out.tfevents.1").write_bytes(b"\xff" * 5000)
    reader = RateReader()
    assert [reader.read(files(tmp_path)) for _ in range(3)] == [[], [], []]
    written(tmp_path / "two", range(1, 3))
    assert reader.read(files(tmp_path)) == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(("second", "read"), [(0.5, [1, 2, 3]), (0.1, [])])
def test_groups_of_parameters_with_rates_of_their_own_have_no_rate_to_compare(
    tmp_path: Path, second: float, read: list[int]
) -> None:
    reader = RateReader()
    with SummaryWriter(str(tmp_path / "one")) as writer:
        for step in (1, 2, 3):
            writer.add_scalar("lr/AdamW/0", 0.5, step)
            writer.add_scalar("lr/AdamW/1", second, step)
    assert reader.read(files(tmp_path)) == [(step, 0.5) for step in read]
    assert reader.read(files(tmp_path)) == []


def test_the_next_start_of_a_trainer_has_a_file_of_its_own(tmp_path: Path) -> None:
    reader = RateReader()
    written(tmp_path / "20261129-1000", range(10, 40, 10))
    assert [step for step, _ in reader.read(files(tmp_path))] == [10, 20, 30]
    written(tmp_path / "20261129-1100", range(20, 60, 10))
    assert [step for step, _ in reader.read(files(tmp_path))] == [20, 30, 40, 50]
