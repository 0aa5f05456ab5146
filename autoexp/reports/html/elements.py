"""Elements of a web page: text that stands in one is escaped, unless it is an element itself."""

from collections.abc import Iterable

from autoexp import sinks
from autoexp.redaction import without_secrets


class Html(str):
    """Text that is HTML already: an element, or several."""


Inside = str | int | float | None
"""What may stand in an element: text, a number, or another element."""


def element(name: str, *inside: Inside, **attributes: str | bool) -> Html:
    """An element; `class_` and the like are attributes, those that are False are left out."""
    given = "".join(
        f" {key.rstrip('_')}" + ("" if value is True else f'="{sinks.web(str(value))}"')
        for key, value in attributes.items()
        if value is not False
    )
    return Html(f"<{name}{given}>{together(inside)}</{name}>")


def together(parts: Iterable[Inside]) -> Html:
    """Elements and texts side by side."""
    return Html("".join(map(_safe, parts)))


def _safe(part: Inside) -> str:
    if isinstance(part, Html):
        return part
    # Events quote logs, and the page is passed on.
    return "" if part is None else sinks.web(without_secrets(str(part)))


def facts(pairs: Iterable[tuple[str, Inside]]) -> Html:
    """Names and values; those without a value are left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    return element(
        "dl", *(part for name, v in known for part in (element("dt", name), element("dd", v)))
    )


def table(head: Iterable[str], rows: Iterable[Iterable[Inside]], numbers: Iterable[str]) -> Html:
    """A table that scrolls by itself where it is wider than the screen; columns of numbers."""
    names = list(head)
    right = set(numbers)
    classes = ["number" if name in right else "text" for name in names]
    body = [
        element("tr", *(element("td", v, class_=c) for v, c in zip(row, classes, strict=True)))
        for row in rows
    ]
    heading = [element("th", name, class_=c) for name, c in zip(names, classes, strict=True)]
    inside = element("table", element("thead", element("tr", *heading)), element("tbody", *body))
    return element("div", inside, class_="wide")


def folded(title: str, *inside: Inside, open_: bool = False) -> Html:
    """A part that is shown once its title is clicked."""
    return element("details", element("summary", title), *inside, open_=open_)
