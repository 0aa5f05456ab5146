"""Prefect automations for sessions: resume those whose process died, notify people."""

from datetime import timedelta
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

# All runs of a session have the tag; a worker can resume those that are of a deployment, and no
# subflow, nor what somebody runs in a terminal.
_OURS = [
    {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.autoexp"},
    {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
]
_RUN = "prefect.flow-run"
_CRASHED = f"{_RUN}.Crashed"
_ANY = f"{_RUN}.*"
"""Heartbeats and states of all names, those of later versions too."""
# An event is named after its state, and a pattern of Prefect's knows no exception but as a whole.
_OTHER_STATES = {f"{_RUN}.{letter}*" for letter in ascii_uppercase if letter != "C"} | {
    f"{_RUN}.C{letter}*" for letter in ascii_lowercase if letter != "r"
}
"""States of all names but those that begin as `Crashed` does; and no heartbeat."""
# Prefect reports some crashes twice; what acts when nothing follows for a while acts once.
_PAUSE_S = 30.0
# Reports, some of which come twice and some of which a busy server loses: what dies at every start
# reports once a minute or so, and the next report is counted instead of a lost one. A session that
# exists gives up by itself before that (autoexp/jobs/starts.py); this is for what dies before.
_CRASHES = 12


def recovery(silence_s: float) -> list[AutomationCore]:
    """Automations that resume a session whose flow's process died, with its worker or without."""
    return [
        AutomationCore(
            name="autoexp: mark sessions without heartbeat as crashed",
            description=f"Without a heartbeat for {silence_s:.0f} s its process is gone.",
            trigger=_of_each_run(
                after={f"{_RUN}.heartbeat"},
                expect={_ANY},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silence_s),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"no heartbeat for {silence_s:.0f} s; what was submitted keeps running",
                )
            ],
        ),
        AutomationCore(
            name="autoexp: resume crashed sessions",
            description="The same flow run goes on, on any worker of its pool, with the same jobs.",
            trigger=_of_each_run(
                after={_CRASHED},
                # A run that was marked as crashed, and was alive, may end by itself first.
                expect=_OTHER_STATES,
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=_PAUSE_S),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    message="resumed after a crash",
                    force=True,
                )
            ],
        ),
        AutomationCore(
            name="autoexp: give up sessions that keep crashing",
            description=f"After {_CRASHES} reports of a crash within an hour one more is no help.",
            trigger=_of_each_run(
                expect={_CRASHED},
                posture=Posture.Reactive,
                threshold=_CRASHES,
                within=timedelta(hours=1),
            ),
            actions=[
                # Before the pause of the automation above is over, for which it is an end.
                ChangeFlowRunState(
                    state=StateType.FAILED,
                    message="its process died repeatedly within an hour, so it is not resumed "
                    "again; what was submitted keeps running. Read the worker's output, mend "
                    "the cause, then retry this run, or `autoexp resume SESSION` if it has made "
                    "one",
                    force=True,
                )
            ],
        ),
    ]


def _of_each_run(**what: Any) -> EventTrigger:
    return EventTrigger(
        match={"prefect.resource.id": _ANY},
        match_related=_OURS,
        for_each={"prefect.resource.id"},
        **what,
    )


def notifications(block: UUID) -> list[AutomationCore]:
    """Examples of automations on a session's events: messages to people."""
    return [
        _notify(
            "autoexp: notify when a job fails",
            "autoexp.job.failed",
            {"prefect.resource.id": "autoexp.job.*"},
            block,
        ),
        _notify(
            "autoexp: notify when all cooldowns are done",
            "autoexp.cooldowns.finished",
            {"prefect.resource.id": "autoexp.session.*"},
            block,
        ),
    ]


def _notify(name: str, event: str, match: dict[str, str], block: UUID) -> AutomationCore:
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            match=match,
            for_each={"prefect.resource.id"},
            expect={event},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=name,
                body="{{ event.payload.message }}",
            )
        ],
    )


async def install(wanted: list[AutomationCore]) -> list[str]:
    """Create the automations, or bring those of the same names up to date; a line for each."""
    lines = []
    async with get_client() as client:
        for automation in wanted:
            found = await client.read_automations_by_name(automation.name)
            if found:
                await client.update_automation(found[0].id, automation)
            else:
                await client.create_automation(automation)
            lines.append(f"{'updated' if found else 'created'}  {automation.name}")
    return lines


async def notification_block(name: str) -> UUID:
    """The id of a notification block, given as `slack-webhook/my-team`."""
    slug, _, own = name.partition("/")
    async with get_client() as client:
        document = await client.read_block_document_by_name(own, block_type_slug=slug)
    return document.id
