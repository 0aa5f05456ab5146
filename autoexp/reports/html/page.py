"""A session's web page: one file that needs no network."""

import base64
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from autoexp import sinks
from autoexp.reports import plot
from autoexp.reports.html.elements import Html, element, together
from autoexp.reports.html.sections import sections
from autoexp.reports.html.series import series
from autoexp.session.session import Session

_HERE = Path(__file__).parent
_UPLOT = _HERE / "uplot"
"""uPlot as its authors publish it: https://github.com/leeoniya/uPlot, version 1.6.32."""


def page(session: Session) -> str:
    """The page as a file; it says nothing to anybody, and shows what the session was at this time.

    Readers that run no scripts, as previews of mail do, see a picture of the curves.
    """
    return _document(session, contents(session), live=False)


def live_page(session: Session) -> str:
    """The page of a server, which asks it for what is new."""
    return _document(session, contents(session), live=True)


def contents(session: Session) -> dict[str, Any]:
    """What changes while a session runs: HTML by place, and the curves."""
    return {"sections": sections(session), "series": series(session), "over": session.is_over}


def _document(session: Session, found: dict[str, Any], *, live: bool) -> str:
    style = "\n".join((_read(_UPLOT / "uPlot.min.css"), _read(_HERE / "report.css")))
    scripts = [
        f"/*!\n{_read(_UPLOT / 'LICENSE')}*/\n{_read(_UPLOT / 'uPlot.iife.min.js')}",
        _read(_HERE / "report.js"),
    ]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(map(_digest, scripts)),
        "style-src": _digest(style),
        "img-src": "data:",
        "connect-src": "'self'" if live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{name} {allowed}" for name, allowed in rules.items())
    head = (
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="referrer" content="no-referrer">'),
        element("title", f"{session.id} · autoexp"),
        element("style", Html(style)),
    )
    parts = dict(found["sections"])
    body = (
        element("header", parts.pop("head"), id="head"),
        element("section", parts.pop("asked"), id="asked"),
        _curves(session, live=live),
        *(element("section", part, id=place) for place, part in parts.items()),
        element("footer", "Made by autoexp. This page loads nothing from anywhere."),
        # Not run: what is read by the script below it.
        element(
            "script", Html(sinks.script(found["series"])), id="series", type="application/json"
        ),
        *(element("script", Html(script)) for script in scripts),
    )
    attributes = {"lang": "en", **({"data-live": "content.json"} if live else {})}
    whole = element("html", element("head", *head), element("body", *body), **attributes)
    return f"<!doctype html>\n{whole}\n"


def _curves(session: Session, *, live: bool) -> Html:
    without = None
    if not live and (drawn := _picture(session)) is not None:
        picture = element("img", alt="the loss curves", src=drawn)
        without = element("noscript", Html(picture.removesuffix("</img>")))
    places = [element("div", id=name) for name in ("controls", "loss", "rate", "legend")]
    return element("section", element("h2", "Curves"), together([without, *places]), id="curves")


def _picture(session: Session) -> str | None:
    """The curves as an image in a URL; None while no loss has been logged."""
    with tempfile.TemporaryDirectory() as folder:
        file = plot.draw(plot.Subject.of(session), path=Path(folder) / "plot.png")
        if file is None:
            return None
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The only script or style that a browser takes: one of these very letters."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
