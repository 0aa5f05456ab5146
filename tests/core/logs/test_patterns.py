"""Matching log lines: the same answers as plain regular expressions, in bounded time."""

import re
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoexp.logs.engines import Engine, lines_with
from autoexp.logs.linear import SEEN, LinePattern, refuse_slow
from autoexp.logs.lines import Piece
from autoexp.logs.matcher import Hit, matcher
from autoexp.logs.patterns import Wanted, groups_of
from autoexp.logs.prefilter import widened
from autoexp.model import COMPOSING
from autoexp.rules.rules import LogRule

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


def piece_of(*texts: bytes) -> Piece:
    return Piece(0, 0, b"\n".join(texts))


def hits_of(rules: Iterable[Wanted], *texts: bytes) -> list[Hit]:
    found = matcher(rules).search(piece_of(*texts))
    return [hit for _, hits in found for hit in hits]


def plain_answer(rules: Sequence[Wanted], texts: Sequence[bytes]) -> list[tuple[str, int, dict]]:
    """What `re` says, line by line."""
    answer, offset = [], 0
    for text in texts:
        for rule in rules if text else ():
            shown = text[: LinePattern(rule.pattern).seen]
            if match := re.search(rule.pattern.encode(), shown):
                groups = {k: v or b"" for k, v in match.groupdict().items()}
                answer.append((rule.name, offset, groups))
        offset += len(text) + 1
    return answer


def agree(rules: Sequence[Wanted], texts: Sequence[bytes]) -> None:
    found = [(hit.name, hit.line.offset, hit.groups) for hit in hits_of(rules, *texts)]
    assert found == plain_answer(rules, texts)


SOME_LINES = st.lists(
    st.text("abcdexyNCL timeou09\x0b[]:", max_size=30).map(str.encode)
    | st.sampled_from([b"abc", b"", b"x" * 5000 + b"abcde", b"ab" * 2050]),
    min_size=1,
    max_size=6,
)
ATOMS = st.sampled_from(
    (
        *("a", "b", "ab", ".", r"\d", r"\s", r"\S", r"\w", "[a-c]", "[^a]", "^", "$", r"\b", r"\Z"),
        *("(?=b)", "(?!b)", "x{2,3}", "b{0,2}", "[[:a]", "(?i:NC)", "(?:a|bc)", "(?P<g>d.*)"),
        *("c*", "e+?"),
    )
)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(SOME_LINES)
def test_no_engine_changes_an_answer(engine: type, texts: list[bytes]) -> None:
    agree([Wanted(p, p, True) for p in PATTERNS], texts)


@pytest.mark.filterwarnings("ignore:Possible nested set")
@settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
@given(st.lists(ATOMS, min_size=1, max_size=5), st.booleans(), SOME_LINES)
def test_no_engine_changes_an_answer_about_any_pattern(
    engine: type, atoms: list[str], ignore_case: bool, texts: list[bytes]
) -> None:
    pattern = ("(?i)" if ignore_case else "") + "".join(atoms)
    try:
        refuse_slow(pattern)
    except ValueError:
        return
    agree([Wanted("r", pattern, True)], texts)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_found_in_a_line_is_found_by_its_widened_pattern(pattern: str) -> None:
    wide = widened(Wanted("r", pattern, True))
    for text in (b"NCCL timeout: x", b"abce", b"nccl", b"xxx", b"cd", b"abc", b"12 ab", b"abcd"):
        if wide is not None and re.search(pattern.encode(), text):
            assert re.search(wide, text)


def test_a_match_is_reported_once_however_long_its_end_may_be() -> None:
    long, short = r"CUDA error: .+\b", "CUDA error: ."
    assert widened(Wanted("r", long, True)) == widened(Wanted("r", short, True))


@pytest.mark.parametrize("mark", [b"", b"i", b"it"])
def test_marked_lines_come_in_their_order_between_those_with_hits(
    engine: type, mark: bytes
) -> None:
    texts = (b"it 1", b"bad", b"it is bad", b"nothing", b"it 2")
    found = matcher([Wanted("r", "bad", True)]).search(piece_of(*texts), mark)
    seen = [(line.text, [hit.name for hit in hits]) for line, hits in found]
    assert seen == [
        (text, ["r"] if b"bad" in text else []) for text in texts if b"bad" in text or mark in text
    ]


@given(st.lists(st.text("abc", max_size=4).map(str.encode), min_size=1), st.sampled_from(["", "a"]))
def test_the_lines_with_a_text_are_those_that_have_it(texts: list[bytes], text: str) -> None:
    piece = piece_of(*texts)
    found = [piece.line(*span) for span in lines_with(piece.data, text.encode())]
    assert found == [line for line in piece.lines() if text.encode() in line.text]


def test_two_rules_and_two_lines_are_four_hits_in_order(engine: type) -> None:
    rules = [Wanted("regex", "a+", True), Wanted("text", "aa", False)]
    hits = hits_of(rules, b"aa", b"none", b"baa")
    assert [(hit.name, hit.line.offset) for hit in hits] == [
        ("regex", 0),
        ("text", 0),
        ("regex", 8),
        ("text", 8),
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a+)+b", r"(a|a)*b", r"(a|ab)*c", r"(?:\d+ )+end", r"(.*a){20}", r"((ab)*)*"),
        *(r"(x?){50}y", r".*a.*b.*c.*d.*e", r"a.*b.*c.*\d", r"(?:a{1,80}){1,10}b", "a?" * 40),
    ],
)
def test_a_pattern_that_would_blow_up_is_linear(pattern: str) -> None:
    refuse_slow(pattern)
    made = LinePattern(pattern)
    assert made.is_linear
    # `re` would be at it for years.
    made.search(b"abc" * 2000), made.search(b"a" * 5000), made.search(b"x" * 5000)


@pytest.mark.parametrize(
    "pattern", [r"(?=.*a.*b).*c.*d", r"(?!x)(a+)+b", r"(?=(?:a|a){30})b", r"(?=a?a?)" + "a?" * 30]
)
def test_what_only_a_backtracking_engine_can_do_is_refused_where_it_could_blow_up(
    pattern: str,
) -> None:
    with pytest.raises(ValueError, match="could take minutes"):
        refuse_slow(pattern)
    assert LinePattern(pattern).seen <= 64  # as a session has it that is older than the refusal


@pytest.mark.parametrize("pattern", [r"(a)\1*", r"(a)?(?(1)b|c)"])
def test_references_to_groups_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="references to groups"):
        refuse_slow(pattern)


@pytest.mark.parametrize("pattern", [r"error (?!expected).*", r"(?<=rank )\d+", r"lost\Z"])
def test_a_look_around_is_taken_with_one_repeat(pattern: str) -> None:
    refuse_slow(pattern)
    assert LinePattern(pattern).seen == SEEN


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[z-a]", "(?P<a>x)(?P<a>y)", "(?<=a+)b"])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression"):
        refuse_slow(pattern)


@pytest.mark.parametrize("key", ["pattern", "substring"])
@pytest.mark.parametrize("text", ["\x1b.31merror", r"\x1b\[31merror", r"\033\[0m"])
def test_a_pattern_that_asks_for_a_terminal_escape_is_refused_where_it_is_written(
    key: str, text: str
) -> None:
    with pytest.raises(ValidationError, match="terminal escape"):
        LogRule.model_validate({key: text}, context=COMPOSING)
    LogRule.model_validate({key: text})  # as an older session has it


@pytest.mark.parametrize("pattern", [*PATTERNS, r"step (?P<n>\d+) of (?P<all>\d+), \w+: .*"])
def test_ordinary_patterns_are_taken(pattern: str) -> None:
    refuse_slow(pattern)


@pytest.mark.parametrize("pattern", [r"a.*b.*c.*d", r".*a.*c", r"a.*c"])
def test_the_worst_line_comes_to_its_end(engine: type, pattern: str) -> None:
    # Unbounded, `re` would be at it for days.
    hits_of([Wanted("slow", pattern, True)], b"ab" * 500_000, b"abc" * 300_000 + b"d")


@pytest.mark.parametrize("pattern", ["aa.*bb", "aa.*b.*c.*bb"])
def test_a_pattern_sees_the_first_part_of_a_line(engine: type, pattern: str) -> None:
    rules = [Wanted("r", pattern, True)]
    fits, not_quite = (b"aa" + b"bc" + b"-" * (SEEN - 6 + more) + b"bb" for more in (0, 1))
    assert [hit.line.offset for hit in hits_of(rules, fits, not_quite)] == [0]


def test_of_ordinary_lines_none_is_looked_at_by_itself(engine: Callable[..., Engine]) -> None:
    rules = [Wanted(f"r{n}", rf"error {n}: (?P<what>.+)", True) for n in range(50)]
    ordinary = [b" iteration %8d | lm loss: 2.34" % n for n in range(10_000)]
    text = b"\n".join([*ordinary, b"error 7: disk", *ordinary])
    (found,) = engine(rules).lines(text)
    assert text[slice(*found)].strip() == b"error 7: disk"


def test_the_names_of_groups_are_known_beforehand() -> None:
    assert groups_of(r"(?P<rank>\d+):(?P<what>.*)") == ("rank", "what")


@pytest.mark.parametrize("pattern", ["(?P<n>)z", "()a", "a|", "(?P<n>|a)z", "(?=)x", "(?:)"])
def test_an_empty_group_or_branch_is_taken(pattern: str) -> None:
    refuse_slow(pattern)
    assert LinePattern(pattern).is_linear is ("(?=" not in pattern)
