"""A removal is done part by part, follows no link and says what it has freed."""

import os
from pathlib import Path

from autoexp.storage.removal import Part, remove_part, size_of


def many(root: Path, count: int) -> Path:
    for number in range(count):
        folder = root / "shards" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.distcp").write_bytes(b"x" * 10)
    return root


def test_a_folder_is_removed_in_bounded_parts_and_every_byte_is_counted_once(
    tmp_path: Path,
) -> None:
    root = many(tmp_path / "iter", 100)
    assert size_of(root) == 1000
    parts = []
    while not parts or not parts[-1].is_done:
        before = sum(len(files) for _, _, files in os.walk(root))
        parts.append(remove_part(root, 30))
        assert before - sum(len(files) for _, _, files in os.walk(root)) <= 30
    assert len(parts) == 4 and not root.exists()
    assert (sum(p.files for p in parts), sum(p.bytes for p in parts)) == (100, 1000)
    assert remove_part(root, 30) == Part()


def test_no_link_is_followed_and_what_has_another_name_frees_nothing(tmp_path: Path) -> None:
    outside = many(tmp_path / "outside", 3)
    root = many(tmp_path / "iter", 2)
    (root / "link").symlink_to(outside)
    os.link(root / "shards" / "0" / "0.distcp", tmp_path / "second name")
    assert size_of(root) == 20 + (root / "link").lstat().st_size
    assert remove_part(root, 100) == Part(3, 10 + len(str(outside)), True)
    assert size_of(outside) == 30 and (tmp_path / "second name").read_bytes() == b"x" * 10


def test_a_checkpoint_that_is_one_file_is_removed_as_well(tmp_path: Path) -> None:
    (tmp_path / "ckpt-100.pt").write_bytes(b"xyz")
    assert size_of(tmp_path / "ckpt-100.pt") == 3
    assert remove_part(tmp_path / "ckpt-100.pt", 1) == Part(1, 3, True)
    assert size_of(tmp_path / "ckpt-100.pt") == 0
