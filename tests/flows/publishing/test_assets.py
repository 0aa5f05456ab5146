"""A session's assets: what each was made of, once, and with what is known of it."""

import inspect
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.assets import Asset
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.flows.evaluate import evaluate
from autoexp.flows.publishing.assets import AssetTracker, data_key
from autoexp.flows.publishing.events import EventEmitter
from autoexp.jobs.record import JobRecord
from autoexp.model import now
from autoexp.rules.events import AttemptJudged, CheckpointComplete
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, attempt_of, create, spec_of
from tests.sources import ROOT

Emitted = list[tuple[str, dict[str, Any]]]
OF = "autoexp://s1/"


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> Emitted:
    """The events that are handed to Prefect."""
    found: Emitted = []

    def take(event: str, **given: Any) -> None:
        found.append((event, given))

    monkeypatch.setattr("autoexp.flows.publishing.assets.emit_event", take)
    monkeypatch.setattr("autoexp.flows.publishing.events.emit_event", take)
    return found


def made(emitted: Emitted) -> dict[str, tuple[str, list[str], dict[str, str]]]:
    """How each asset ended, the keys of what it was made of, and what is told of it."""
    return {
        given["resource"]["prefect.resource.id"]: (
            event.removeprefix("prefect.asset.materialization."),
            [
                each["prefect.resource.id"]
                for each in given["related"]
                if each["prefect.resource.role"] == "asset"
            ],
            given["payload"],
        )
        for event, given in emitted
        if event.startswith("prefect.asset.materialization.")
    }


def save(session: Session, job: JobRecord, iteration: int) -> None:
    folder = Path(job.spec.save_dir) / f"iter_{iteration:07}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * iteration)
    saved = CheckpointComplete(job=job.spec.name, iteration=iteration, path=str(folder))
    session.record([saved])


def submit(session: Session, name: str) -> JobRecord:
    job = session.job(name)
    key = f"s1-{name}-a{len(job.attempts) + 1}"
    attempt = attempt_of(key, number=len(job.attempts) + 1)
    session.change_job(job, attempts=[*job.attempts, attempt])
    session.record_submission(session.job(name), attempt, "7")
    return session.job(name)


def end(session: Session, name: str, verdict: Verdict, **changes: Any) -> None:
    job = session.job(name)
    session.change_attempt(job, job.attempts[-1], {"ended_at": now(), "verdict": verdict})
    session.change_job(session.job(name), verdict=verdict, reason="so it ended", **changes)
    judged = AttemptJudged(
        job=name,
        attempt=len(job.attempts),
        verdict=verdict,
        state="COMPLETED",
        iteration=changes.get("iteration"),
        reason="so it ended",
    )
    session.record([judged])


async def test_a_model_leads_back_to_its_checkpoint_its_training_and_its_data(
    tmp_path: Path, emitted: Emitted
) -> None:
    mixed = [*TINY, "backend.args.mix=web"]
    session = Session.load(create(compose("demo", mixed), tmp_path, session_id="s1"))
    emitter = EventEmitter(session)
    session.log_progress(session.job("tiny"), ["90,2.5,1e-2,0.1\n", "100,2.25,1e-2,0.1\n"])
    save(session, submit(session, "tiny"), 100)
    emitter.collect()
    await emitter.emit_new()
    assert made(emitted) == {}  # nothing uses it yet

    cooldown = submit(session, "tiny-cd100")
    session.log_progress(cooldown, ["150,1.75,1e-3,0.1\n"])
    save(session, cooldown, 150)
    end(session, "tiny-cd100", Verdict.FINISHED, iteration=150, validations={"v": (150, 1.8)})
    emitter.collect()
    await emitter.emit_new()

    checkpoint, model = f"{OF}tiny/checkpoints/100", f"{OF}tiny-cd100/model"
    found = made(emitted)
    assert {key: (how, of) for key, (how, of, _) in found.items()} == {
        checkpoint: ("succeeded", ["data://web"]),
        model: ("succeeded", [checkpoint, "data://web"]),
    }
    assert found[checkpoint][2]["loss"] == "2.25" and found[checkpoint][2]["bytes"] == "100"
    told = found[model][2]
    assert told["iteration"] == "150" and told["bytes"] == "150" and told["loss"] == "1.75"
    assert told["validation_loss"] == "1.8" and told["path"].endswith("iter_0000150")
    assert int(told["tokens"]) == cooldown.spec.tokens_at(150) and told["session"] == "s1"
    by = [given["related"] for event, given in emitted if given["resource"] == {
        "prefect.resource.id": model, "prefect.resource.name": "cooldown tiny @100"}]  # fmt: skip
    assert {
        "prefect.resource.id": "autoexp.job.s1.tiny-cd100",
        "prefect.resource.role": "asset-materialized-by",
    } in by[0]
    for key in found:
        assert Asset(key=key).key == key  # Prefect's own check


async def test_the_trigger_of_the_shipped_deployments_takes_each_cooldowns_model_and_no_other(
    tmp_path: Path, emitted: Emitted
) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (evaluated,) = [each for each in deployments if "triggers" in each]
    (written,) = evaluated["triggers"]
    given = {key: value for key, value in written.items() if key in ("expect", "match")}
    trigger = EventTrigger.model_validate(
        {**given, "posture": "Reactive", "threshold": 1, "within": 0}
    )
    session = Session.load(create(compose("demo", [*TINY]), tmp_path, session_id="s1"))
    emitter = EventEmitter(session)
    for name in ("tiny", "tiny-cd100", "tiny-cd200"):
        submit(session, name)
    for name, verdict in (
        ("tiny", Verdict.FINISHED), ("tiny-cd100", Verdict.FINISHED), ("tiny-cd200", Verdict.FAILED)
    ):  # fmt: skip
        end(session, name, verdict, iteration=150)
    emitter.collect()
    await emitter.emit_new()
    found = [
        ReceivedEvent.model_validate({"event": event, "occurred": now(), "id": uuid4(), **told})
        for event, told in emitted
    ]
    taken = [event for event in found if trigger.covers(event)]
    assert [event.resource.id for event in taken] == [f"{OF}tiny-cd100/model"]
    assert len(found) > 4
    # What it hands to the flow is in the event, and a parameter of the flow.
    parameters = written["parameters"]
    assert set(parameters) <= set(inspect.signature(evaluate.fn).parameters)
    asked = re.findall(r"event\.payload\.(\w+)", str(parameters))
    assert asked == ["path", "config"] and set(asked) <= set(taken[0].payload)


async def test_an_asset_is_told_once_and_not_again_by_the_next_monitor(
    tmp_path: Path, emitted: Emitted
) -> None:
    session = Session.load(create(compose("demo", [*TINY]), tmp_path, session_id="s1"))
    emitter = EventEmitter(session)
    save(session, submit(session, "tiny"), 100)
    submit(session, "tiny-cd100")
    emitter.collect()
    await emitter.emit_new()
    assert list(made(emitted)) == [f"{OF}tiny/checkpoints/100"]
    end(session, "tiny-cd100", Verdict.FAILED, iteration=120)
    emitter.collect()
    await emitter.emit_new()
    assert made(emitted)[f"{OF}tiny-cd100/model"][0] == "failed"

    emitted.clear()
    following = EventEmitter(Session.load(session.path))
    submit(session, "tiny-cd100")
    for each in (emitter, following):
        each.collect()
        await each.emit_new()
    assert made(emitted) == {}


async def test_what_stages_and_merges_make_is_of_what_they_wait_for(
    tmp_path: Path, emitted: Emitted
) -> None:
    merges = setting({"merges": [{"at": [200], "last": 150, "shape": "equal"}]})
    path = create(compose("study", [*TINY], merges), tmp_path, session_id="s1")
    session = Session.load(path)
    (merge,) = [job for job in session.jobs.values() if job.spec.merge is not None]
    emitter = EventEmitter(session)
    for name in (merge.spec.name, "tiny-cd100-convert", "tiny-cd100-evaluate"):
        submit(session, name)
        end(session, name, Verdict.FINISHED, scores={"held_out": 2.5})
    emitter.collect()
    await emitter.emit_new()
    found = made(emitted)
    assert found[f"{OF}{merge.spec.name}/model"][1] == [
        f"{OF}tiny/checkpoints/100",
        f"{OF}tiny/checkpoints/200",
    ]
    assert found[f"{OF}tiny-cd100-convert/output"][1] == [f"{OF}tiny-cd100/model"]
    assert f"{OF}tiny-cd100-convert/output" in found[f"{OF}tiny-cd100-evaluate/scores"][1]
    assert found[f"{OF}tiny-cd100-evaluate/scores"][2]["held_out"] == "2.5"


def test_a_cancelled_job_has_made_nothing(tmp_path: Path) -> None:
    session = Session.load(create(compose("demo", [*TINY]), tmp_path, session_id="s1"))
    tracker = AssetTracker(session)
    job = session.job("tiny")
    session.change_job(job, cancel_requested="ann", verdict=Verdict.FAILED)
    tracker.note_end(session.job("tiny"))
    assert tracker._pending == []


async def test_the_size_of_what_is_gone_is_not_told(tmp_path: Path, emitted: Emitted) -> None:
    session = Session.load(create(compose("demo", [*TINY]), tmp_path, session_id="s1"))
    emitter = EventEmitter(session)
    submit(session, "tiny")
    submit(session, "tiny-cd100")
    emitter.collect()
    await emitter.emit_new()
    assert "bytes" not in made(emitted)[f"{OF}tiny/checkpoints/100"][2]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("web", "data://web"),
        ("/data/fine web/x#1", "file:///data/fine_web/x_1"),
        ('a"?%&\n' + "b" * 600, "data://a_____" + "b" * 499),
    ],
)
def test_any_name_of_data_gives_a_key_that_prefect_takes(name: str, key: str) -> None:
    assert data_key(name) == key
    assert Asset(key=key).key == key


def test_weights_are_no_data_sets() -> None:
    data = {"backend.args.data_path": ["0.3", "/data/web", 0.7, "/data/code"]}
    composed = compose(
        "demo", ["backend=megatron", "backend.source=/m", "backend.args.mock_data=false"],
        setting(data),
    )  # fmt: skip
    assert composed.experiment.backend.data_sets() == ("/data/web", "/data/code")
    assert spec_of("true").trainer.data_sets() == ()
