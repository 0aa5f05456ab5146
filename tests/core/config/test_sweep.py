"""Sweeps as plain values: grids, lists, groups, defaults, filters, names, subsets."""

from typing import Any

import pytest
from pydantic import ValidationError

from autoexp.config.sweep import Sweep
from autoexp.config.sweep_expand import chosen, expand, short_names
from autoexp.config.sweep_names import LONGEST, name_points
from autoexp.dotted import flat
from autoexp.errors import BadInput


def points(**sweep: Any) -> list[dict[str, Any]]:
    def by_short_name(settings: dict[str, Any]) -> dict[str, Any]:
        names = short_names(list(settings))
        return {**settings, **{names[key]: value for key, value in settings.items()}}

    return expand(Sweep.model_validate(sweep), by_short_name)


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    assert points(grid={"a.lr": [1, 2], "a.batch": [3, 4]}) == [
        {"a.lr": 1, "a.batch": 3},
        {"a.lr": 1, "a.batch": 4},
        {"a.lr": 2, "a.batch": 3},
        {"a.lr": 2, "a.batch": 4},
    ]


def test_a_list_is_its_settings_and_multiplies_a_grid() -> None:
    assert points(grid={"x": [1, 2]}, list=[{"y": 1}, {"y": 2, "z": 3}]) == [
        {"x": 1, "y": 1},
        {"x": 1, "y": 2, "z": 3},
        {"x": 2, "y": 1},
        {"x": 2, "y": 2, "z": 3},
    ]


def test_groups_follow_one_another_and_say_otherwise_than_the_defaults_around_them() -> None:
    found = points(
        defaults={"wd": 0.1, "seed": 1},
        grid={"size": ["s", "m"]},
        groups=[
            {"grid": {"lr": [1, 2]}},
            {"defaults": {"wd": 0.0}, "list": [{"lr": 9}]},
        ],
    )
    assert [(p["size"], p["lr"], p["wd"], p["seed"]) for p in found] == [
        ("s", 1, 0.1, 1),
        ("s", 2, 0.1, 1),
        ("s", 9, 0.0, 1),
        ("m", 1, 0.1, 1),
        ("m", 2, 0.1, 1),
        ("m", 9, 0.0, 1),
    ]


def test_a_filter_leaves_points_out() -> None:
    found = points(grid={"a.lr": [1, 2], "a.batch": [3, 4]}, filter="lr * batch < 7")
    assert [(p["a.lr"], p["a.batch"]) for p in found] == [(1, 3), (1, 4), (2, 3)]


def test_a_filter_of_a_group_is_about_its_own_points() -> None:
    found = points(groups=[{"grid": {"x": [1, 2]}, "filter": ["x > 1"]}, {"list": [{"x": 0}]}])
    assert found == [{"x": 2}, {"x": 0}]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"grid": {"x": [1]}, "filter": "y > 1"}, r"sweep.filter: .*nothing is called `y`"),
        ({"grid": {"x": [1]}, "filter": "x > 1"}, "no point is left"),
        ({"groups": [{"grid": {"x": ["a"]}, "filter": "x < 1"}]}, r"sweep.groups.0.filter: "),
    ],
)
def test_a_filter_that_fails_says_where(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        points(**sweep)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"grid": {"x": []}}, "grid.x: has no value"),
        ({"grid": {"x": [1]}, "list": [{"x": 2}]}, "x: is set in two of"),
        ({"grid": {"x": [1]}, "groups": [{"grid": {"x": [2]}}]}, "x: is set in two of"),
        ({"filter": "open('x')"}, "Call is not allowed"),
        ({"gird": {}}, "gird"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_when_it_is_read(
    sweep: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Sweep.model_validate(sweep)


def test_a_slip_of_a_grid_does_not_become_millions_of_points() -> None:
    with pytest.raises(BadInput, match="more than 10000 points"):
        points(grid={key: list(range(10)) for key in "abcdefgh"})


def named(settings: list[dict[str, Any]], template: str | None = None) -> list[str]:
    known = [{**p, **{key.rpartition(".")[2]: value for key, value in p.items()}} for p in settings]
    return name_points("demo", template, settings, known)


def test_names_say_what_differs() -> None:
    found = points(defaults={"wd": 1}, grid={"a.lr": [1e-2, 3e-3], "a.batch": [1]})
    assert named(found) == ["demo-lr0.01", "demo-lr0.003"]


def test_names_are_unique_and_fit_for_files_whatever_the_values() -> None:
    found = points(grid={"data": ["a/b c", "a b/c", "ü", "$(id)", "../x", [1, 2], {"k": 1}]})
    names = named(found)
    assert len(set(names)) == len(names)
    assert names[:2] == ["demo-dataa-b-c-p1", "demo-dataa-b-c-p2"]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._k") for name in names)


def test_long_names_become_short() -> None:
    keys = {f"backend.args.quite_long_name_{x}": [1, 2] for x in "abc"}
    names = named(points(grid=keys))
    assert names[0] == "demo-qlna1-qlnb1-qlnc1"
    values = points(grid={"path": [f"{x}" * 60 for x in "abc"]})
    assert named(values) == ["demo-p1", "demo-p2", "demo-p3"]
    assert all(len(name) <= LONGEST for name in names)


def test_a_template_names_points_and_refuses_doubles() -> None:
    found = points(grid={"a.lr": [1, 2], "b": [3, 4]})
    assert named(found, "x{lr}y{b}")[0] == "demo-x1y3"
    with pytest.raises(BadInput, match="gives points 1 and 2 one name, demo-x1"):
        named(found, "x{lr}")
    with pytest.raises(BadInput, match=r"nothing here is called `\{lrr\}`; did you mean `\{lr\}`"):
        named(found, "x{lrr}")


def test_a_template_is_filled_once() -> None:
    assert named([{"a": "{b}", "b": "{a}"}], "{a}") == ["demo-b"]


def test_short_names_are_the_shortest_that_are_unique() -> None:
    assert short_names(["backend.args.lr", "other.lr", "x"]) == {
        "backend.args.lr": "args.lr",
        "other.lr": "other.lr",
        "x": "x",
    }


def test_a_subset_is_numbers_and_ranges() -> None:
    assert chosen("3,5-7", 9) == [3, 5, 6, 7]
    assert chosen(" 2 , 1-2", 2) == [1, 2]
    for text in ("0", "10", "7-5", "a", "", "1,,2", "-1", "5-"):
        with pytest.raises(BadInput, match="--subset"):
            chosen(text, 9)


def test_nested_values_become_dotted_ones() -> None:
    assert flat({"a": {"b": 1, "c": [2]}, "d": {}}) == {"a.b": 1, "a.c": [2]}
