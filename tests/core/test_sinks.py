"""What each sink promises, whatever text it is given."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoexp import sinks
from autoexp.errors import SessionError

HOSTILE = st.text() | st.sampled_from(
    ["\x1b[31m", "\x1b]0;t\x07", "\x9b2J", "\u202eevil", "![x](http://e)", "<img src=x>", "a|b\nc"]
)


@given(HOSTILE)
def test_a_terminal_gets_no_control_character(text: str) -> None:
    shown = sinks.terminal(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in shown)
    assert "\n" not in sinks.line(text) and len(sinks.title(text)) <= 80


@given(HOSTILE)
def test_a_page_gets_no_link_image_or_tag(text: str) -> None:
    shown = sinks.markdown(text)
    assert "<" not in shown and "\n" not in shown and "://" not in shown.replace("\\:", "")
    bare = shown.replace("\\\\", "")
    assert all(bare[at - 1 : at] == "\\" for at, c in enumerate(bare) if c in "[]|`!*_")
    assert sinks.markdown_code(text).count("`") in (0, 2)


@given(HOSTILE)
def test_a_batch_option_stays_on_its_line(text: str) -> None:
    try:
        assert sinks.batch_option(text).isprintable()
    except ValueError:
        assert not text.isprintable()


@pytest.mark.parametrize("value", ["--exec=x", "-rf"])
def test_what_an_event_brings_becomes_no_option_and_no_program(value: str) -> None:
    values = {"what": value, "python": "/bin/python"}
    for command in (["{python}", "{what}"], ["{what}"]):
        with pytest.raises(SessionError):
            sinks.arguments(command, values, {"what"})
    assert sinks.arguments(["{python}", "--", "{what}"], values, {"what"})[2] == value
    assert sinks.arguments(["{python}", "{what}"], {**values, "what": "-0.5"}, {"what"})


def test_no_argument_has_a_nul() -> None:
    with pytest.raises(SessionError):
        sinks.argument("a\0b")
