"""A session's web page: it needs no network, shows what there is, and no text in it is more."""

import base64
import hashlib
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.reports.curves import Curve
from autoexp.reports.html import page as pages
from autoexp.reports.html.page import page
from autoexp.reports.html.sections import sections
from autoexp.reports.html.series import series, thinned
from autoexp.reports.html.server import ReportServer
from autoexp.rules.events import LogMatched
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.core.house.promises import HOSTILE

UPLOT = Path(pages.__file__).parent / "uplot"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of those of one name."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._name, self._open = name, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == self._name:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def make(root: Path, *overrides: str) -> Session:
    """A training with two cooldowns, the first of which has logged."""
    session = Session.load(create(compose("demo", [*TINY, *overrides]), root, session_id="s1"))
    trunk, first, _ = session.jobs.values()
    session.log_progress(trunk, (f"{i},{3 - i / 100},1e-2,0.1\n" for i in range(10, 301, 10)))
    session.change_job(trunk, iteration=300, loss=0.1, verdict=Verdict.FINISHED)
    session.log_progress(first, (f"{i},{3 - i / 50},1e-3,0.1\n" for i in range(110, 151, 10)))
    session.change_job(first, iteration=150, loss=0.2)
    return session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make(tmp_path)


def tokens_of(session: Session, job: str, iteration: int) -> int:
    tokens = session.jobs[job].spec.tokens_at(iteration)
    assert tokens is not None
    return tokens


def with_texts(session: Session, texts: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The page's elements and attributes' names once its session holds these texts all over."""
    trunk, first, second = session.jobs.values()
    trunk.scores = {f"{n}{text}": 1.0 for n, text in enumerate(texts)}
    first.reason, first.verdict = "".join(texts), Verdict.FAILED
    second.warning = "".join(texts)
    logged = (text.encode(errors="replace").decode() for text in texts)  # as it is read of a log
    session.journal.append(
        LogMatched(
            job=trunk.spec.name, attempt=1, rule="r", generation=0, offset=n, line=text, values={}
        )
        for n, text in enumerate(logged)
    )
    meta = session.meta
    about = meta.experiment.project.model_copy(update={"description": texts[-1]})
    session.meta = meta.model_copy(
        update={
            "overrides": texts,
            "git": {"branch": texts[0] or "-", "commit": texts[-1], "uncommitted": "".join(texts)},
            "versions": dict.fromkeys(texts, texts[-1]),
            "experiment": meta.experiment.model_copy(update={"project": about}),
        }
    )
    found = Elements(page(session)).found
    return [(tag, list(attributes)) for tag, attributes in found]


def test_nothing_that_a_session_holds_becomes_a_tag_or_a_script(tmp_path: Path) -> None:
    harmless = tuple(f"text {n}" for n, _ in enumerate(HOSTILE))
    # Reasons and the like that are empty are left out: as many of both.
    hostile = tuple((text.strip() and text) or f"text {n}" for n, text in enumerate(HOSTILE))
    expected = with_texts(make(tmp_path / "a"), harmless)
    assert with_texts(make(tmp_path / "b"), hostile) == expected


def test_no_secret_of_a_log_stands_on_a_page_that_is_passed_on(session: Session) -> None:
    (first, *_) = session.jobs.values()
    session.change_job(first, reason="cannot read https://u:s3cretword@host/x")
    assert "s3cretword" not in page(session)


def test_a_page_loads_nothing_and_runs_its_own_scripts_alone(session: Session) -> None:
    text = page(session)
    found = Elements(text).found
    links = [v for _, given in found for k, v in given.items() if k in ("src", "href", "srcset")]
    assert len(links) == 1 and (links[0] or "").startswith("data:image/png;base64,")
    assert not re.search(r"@import|url\(", text)
    (policy,) = [a["content"] for tag, a in found if a.get("http-equiv")]
    rules = dict(part.split(" ", 1) for part in (policy or "").split("; "))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for kind, parts in (("script-src", scripts), ("style-src", styles)):
        digests = [hashlib.sha256(part.encode()).digest() for part in parts]
        assert rules[kind].split() == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]
    assert len(scripts) == 2 and not [tag for tag, given in found if "style" in given]


def test_uplot_is_as_published_and_goes_with_its_licence(session: Session) -> None:
    published = {
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
        "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    }
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in UPLOT.iterdir()}
    assert files == published
    text = page(session)
    assert "(v1.6.32)" in text and "Copyright (c) 2022 Leon Sorokin" in text


def test_curves_of_branches_begin_at_their_trainings(session: Session) -> None:
    (trunk, branch) = series(session)["curves"]
    assert branch["root"] == trunk["name"] == "tiny" and branch["title"] == "@100"
    assert trunk["iterations"][0] == 10 and not trunk["branches"]
    # The training's own point at 100 first.
    assert list(zip(branch["iterations"], branch["losses"], strict=True))[:2] == [
        (100, 2.0),
        (110, 0.8),
    ]
    assert trunk["tokens"] == branch["tokens"] == tokens_of(session, "tiny", 1)


def test_a_branch_with_a_batch_of_its_own_goes_on_from_its_trainings_tokens(tmp_path: Path) -> None:
    batch = "cooldowns.0.backend.args.global_batch_size=512"
    session = make(tmp_path, batch)
    (trunk, branch) = series(session)["curves"]
    name = branch["name"]
    assert trunk["tokens"] == tokens_of(session, "tiny", 1)
    twice = tokens_of(session, name, 110) - tokens_of(session, name, 100)
    assert twice == 2 * 10 * trunk["tokens"]
    assert branch["iterations"][:3] == [100, 110, 120]
    assert branch["tokens"][:3] == [100 * trunk["tokens"] + n * twice for n in range(3)]


def test_curves_of_a_page_are_those_that_were_read(session: Session) -> None:
    (content,) = Elements(page(session), "script").texts[:1]
    assert json.loads(content) == series(session)


def test_a_curve_of_many_points_keeps_its_spikes_and_its_ends() -> None:
    count = 100_000
    losses = [2.0] * count
    losses[41_234], losses[77_777] = 9.0, 0.5
    curve = Curve(list(range(count)), losses, [1.0] * count)
    thin = thinned(curve, 600)
    assert len(thin.iterations) <= 602 and max(thin.losses) == 9.0 and min(thin.losses) == 0.5
    assert thin.iterations[0] == 0 and thin.iterations[-1] == count - 1
    assert thinned(thin, 1000) is thin


def test_numbers_that_are_none_are_gaps(tmp_path: Path) -> None:
    session = make(tmp_path)
    (trunk, *_) = session.jobs.values()
    session.log_progress(trunk, ["310,nan,1e-2,0.1\n", "320,inf,,0.1\n"])
    losses = series(session)["curves"][0]["losses"]
    assert losses[-2:] == [None, None]
    json.loads(json.dumps(series(session), allow_nan=False))


def test_a_page_says_what_was_asked_and_what_came_of_it(session: Session) -> None:
    found = {
        place: "".join(re.split(r"<[^>]*>", part)) for place, part in sections(session).items()
    }
    assert "1 training, 2 cooldowns" in found["asked"] and "300 iterations" in found["asked"]
    assert "from iteration 100, decays over 50" in found["tree"]
    assert "tiny-cd200" in found["results"] and found["hours"] == ""
    assert str(session.path) in found["provenance"]


def test_a_session_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    path = create(compose("demo", TINY), tmp_path, session_id="s1")
    assert "no loss logged yet" in page(Session.load(path))
    assert series(Session.load(path)) == {"curves": [], "left_out": 0}


@pytest.fixture
def server(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportServer]:
    """A server that reads the session whenever it is asked."""
    monkeypatch.setattr("autoexp.reports.html.server._SHARE", 0)
    with ReportServer(session.path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(url: str, known: str = "") -> tuple[int, bytes, str]:
    request = urllib.request.Request(url, headers={"If-None-Match": known} if known else {})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers["ETag"]
    except HTTPError as error:
        return error.code, error.read(), ""


def test_only_who_has_the_token_reads_the_page(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    root = server.url.removesuffix(f"{server.token}/")
    wrong = (
        *("", "content.json", server.token[:-1] + "/", "é/", f"x/{server.token}/"),
        *(f"{server.token}/../../etc/passwd", f"{server.token}/session.json"),
    )
    for path in wrong:
        assert ask(root + quote(path)) == (404, b"", "")
    status, text, _ = ask(server.url)
    assert status == 200 and b"data-live" in text and b"connect-src 'self'" in text


def test_a_live_page_gets_what_is_new_and_only_that(
    server: ReportServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoexp.reports.html.sections._time", lambda when: "")
    url = f"{server.url}content.json"
    status, text, tag = ask(url)
    assert status == 200 and set(json.loads(text)) == {"sections", "series", "over"}
    assert ask(url, tag)[:2] == (304, b"")
    (trunk, *_) = session.jobs.values()
    session.change_job(trunk, reason="something new")
    assert ask(url, tag)[:2] == (304, b"")  # it has finished: there is nothing to explain
    session.change_job(trunk, verdict=Verdict.FAILED)
    assert b"something new" in ask(url, tag)[1]


def test_a_session_that_is_gone_ends_no_server(server: ReportServer, session: Session) -> None:
    session.path.rename(session.path.with_name("moved"))
    assert ask(server.url)[0] == 503
    session.path.with_name("moved").rename(session.path)
    assert ask(server.url)[0] == 200


def test_a_port_in_use_is_named(server: ReportServer, session: Session) -> None:
    with pytest.raises(BadInput, match=f"--port {server.server_port}"):
        ReportServer(session.path, server.server_port)
