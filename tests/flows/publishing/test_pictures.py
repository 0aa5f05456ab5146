"""A session's pages in a real browser, 1,400 pixels wide: run, jobs' runs, artifacts, assets."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from autoexp.flows.train import train
from autoexp.session.session import Session
from tests.flows.own_server import Own
from tests.flows.prefect_home import prefect_home
from tests.flows.runs import artifacts, materialized, subflows
from tests.flows.sessions import LEARNS, Make
from tests.slurm.browser import CHROMIUM, open_page

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]

WIDTH = 1400


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    found = Own(prefect_home(tmp_path), monkeypatch)
    ours = {PREFECT_API_URL: found.url, PREFECT_API_AUTH_STRING: found.login}
    with temporary_settings(ours):
        yield found
    found.kill()


async def test_the_pages_of_a_session_can_be_read(
    make_session: Make, own: Own, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("AUTOEXP_TEST_PICTURES", tmp_path))
    path = make_session(*LEARNS)
    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]
    assert state.is_completed(), state.message
    session = Session.load(path)
    model = f"autoexp://{session.id}/demo-cd200/model"
    await materialized(session, model)

    def opened(page: str, name: str, height: int = 800) -> str:
        address = f"{own.url.removesuffix('/api')}{page}#{own.login}"
        return open_page(address, pictures / name, width=WIDTH, height=height)

    shown = opened(f"/runs/flow-run/{session.meta.flow_run_ids[-1]}", "session.png")
    assert f"session {session.id}" in shown and "Completed" in shown
    assert f"session:{session.id}" in shown and "cluster:local" in shown
    assert "train demo: submitted as job" in shown

    for run in await subflows(session):
        shown = opened(f"/runs/flow-run/{run.id}", f"{run.name.replace(' @', '-')}.png")
        # What happened to the job, on its own page: its attempt, and how that ended.
        assert f">{run.name}<" in shown and "submitted as job" in shown
        assert "finished (reached iteration" in shown and "checkpoint" in shown

    pages = {
        str(each.key).removeprefix(f"{session.id}-"): each for each in await artifacts(session)
    }
    assert {"session", "plan", "plot", "goodput"} < set(pages)
    for name, words in {
        "session": (f"{session.id}: finished", "3 of 3 jobs are over", "250 / 250"),
        "plan": ("decays over", "demo @200"),
        "goodput": ("where the hours of", "demo-cd100", "new, of all"),
    }.items():
        shown = opened(f"/artifacts/artifact/{pages[name].id}", f"page-{name}.png")
        assert [word for word in words if word not in shown] == []
        assert "&lt;" not in shown and "undefined" not in shown  # no markup that is not rendered
    shown = opened(f"/artifacts/artifact/{pages['plot'].id}", "page-plot.png")
    assert "data:image/png;base64," in shown

    shown = opened(await event_page(model), "asset.png")
    assert model in shown and f"autoexp://{session.id}/demo/checkpoints/200" in shown
    assert f"session {session.id}" in shown and "Task run" not in shown  # a model is of no task


async def event_page(asset: str) -> str:
    """Where the UI shows the event by which an asset was made."""
    body = {"filter": {"resource": {"id": [asset]}}, "limit": 5}
    async with get_client() as client:
        (event,) = (await client.request("POST", "/events/filter", json=body)).json()["events"]
    return f"/events/event/{event['occurred'][:10]}/{event['id']}"
