"""Matching log lines: the same answers as plain regular expressions, in bounded time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoexp.logtail import LogLine
from autoexp.rules.patterns import SEEN, Wanted, _unbounded, groups_of, matcher, refuse_slow

PATTERNS = (
    r"NCCL.*timeout.*(?P<details>.+)",
    r"a(?:bc|bd)e",
    r"(?i)nccl",
    r"x{2,3}y?",
    r"(?:ab)?cd",
    r"^abc$",
    r"[0-9]+ ab",
    r"ab(?=cd)",
    r"(?P<one>a)(?P<two>b)?",
)


def lines_of(*texts: bytes) -> list[LogLine]:
    return [LogLine(0, number, text) for number, text in enumerate(texts)]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text("abcdexyNCL timeou09", max_size=30).map(str.encode)
        | st.sampled_from([b"abc", b""]),
        max_size=6,
    )
)
def test_the_literals_change_no_answer(texts: list[bytes]) -> None:
    found = [
        (hit.name, hit.line.offset, hit.groups)
        for hit in matcher(Wanted(p, p, True) for p in PATTERNS).scan(lines_of(*texts))
    ]
    plain = [
        (pattern, number, {k: v or b"" for k, v in match.groupdict().items()})
        for number, text in enumerate(texts)
        for pattern in PATTERNS
        if (match := re.search(pattern.encode(), text))
    ]
    assert found == plain


def test_two_rules_and_two_lines_are_four_hits_in_order() -> None:
    rules = [Wanted("regex", "a+", True), Wanted("text", "aa", False)]
    hits = matcher(rules).scan(lines_of(b"aa", b"none", b"baa"))
    assert [(hit.name, hit.line.offset) for hit in hits] == [
        ("regex", 0),
        ("text", 0),
        ("regex", 2),
        ("text", 2),
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"(a|a)*b",
        r"(a|ab)*c",
        r"(?:\d+ )+end",
        r"(.*a){20}",
        r"((ab)*)*",
        r"(x?){50}y",
        r"(a)\1*",
        r".*a.*b.*c.*d.*e",
        r"(?:a{1,80}){1,80}b",
    ],
)
def test_a_pattern_that_can_blow_up_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"exponential|could take minutes"):
        refuse_slow(pattern)


@pytest.mark.parametrize(("pattern", "counted"), [(r"(\d+):([^ ]+) (\w+)=x", 1), (r"a\d+5.*", 2)])
def test_a_repeat_that_ends_at_what_follows_does_not_count(pattern: str, counted: int) -> None:
    assert _unbounded(pattern) == counted


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[z-a]", "(?P<a>x)(?P<a>y)", "(?<=a+)b"])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        refuse_slow(pattern)


@pytest.mark.parametrize("pattern", [*PATTERNS, r"step (?P<n>\d+) of (?P<all>\d+), \w+: .*"])
def test_ordinary_patterns_are_taken(pattern: str) -> None:
    refuse_slow(pattern)


@pytest.mark.parametrize("pattern", [r"a.*b.*c.*d", r".*a.*c", r"a.*c"])
def test_the_worst_line_takes_a_second_or_two(pattern: str) -> None:
    rules = matcher([Wanted("slow", pattern, True)])
    begun = time.perf_counter()
    assert list(rules.scan(lines_of(b"ab" * 500_000, b"abc" * 300_000 + b"d"))) is not None
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize(("pattern", "seen"), [("aa.*bb", SEEN[1]), ("aa.*b.*c.*bb", SEEN[3])])
def test_a_pattern_sees_the_first_part_of_a_line(pattern: str, seen: int) -> None:
    rules = matcher([Wanted("r", pattern, True)])
    fits, not_quite = (b"aa" + b"bc" + b"-" * (seen - 6 + more) + b"bb" for more in (0, 1))
    assert [hit.line.offset for hit in rules.scan(lines_of(fits, not_quite))] == [0]


def test_a_hundred_thousand_ordinary_lines_are_passed_over_in_a_moment() -> None:
    rules = matcher(Wanted(f"r{n}", rf"error {n}: (?P<what>.+)", True) for n in range(50))
    lines = lines_of(*(b" iteration %8d | lm loss: 2.34" % n for n in range(100_000)))
    begun = time.perf_counter()
    assert list(rules.scan(lines)) == []
    assert time.perf_counter() - begun < 1


def test_the_names_of_groups_are_known_beforehand() -> None:
    assert groups_of(r"(?P<rank>\d+):(?P<what>.*)") == ("rank", "what")
