"""`autoexp track`: sends to trackers what is new."""

from typing import Annotated

import typer

from autoexp.cli import options

_PATIENCE_S = 60.0


def track(
    name: options.AnySession = None,
    settings: Annotated[
        list[str] | None,
        options.argument(
            "TRACKER", "Settings such as tensorboard=runs or mlflow.uri=URL, beside the session's."
        ),
    ] = None,
    rests: Annotated[
        bool, typer.Option("--rests", help="Leave out what need not be sent yet, as the monitor.")
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """Send curves to W&B, MLflow or TensorBoard: whatever is new on disk, also of an old session.

    \b
    Examples:
      autoexp track demo-1a2b
      autoexp track demo-1a2b tensorboard=/scratch/runs
      autoexp track demo-1a2b wandb.mode=offline
    """
    from autoexp.errors import BadInput, SessionHeld
    from autoexp.reports.terminal import say, say_json
    from autoexp.session.find import session_path
    from autoexp.session.meta import SessionMeta
    from autoexp.storage import locks, migrations
    from autoexp.tracking.send import send_new
    from autoexp.tracking.settings import chosen
    from autoexp.tracking.tracker import Owner

    path = session_path(name)
    meta = migrations.read(path / "session.json", SessionMeta)
    tracking = chosen(meta.experiment.tracking, settings or [])
    if tracking is None:
        raise BadInput(
            f"{meta.session} has no `tracking`: name one, as in `autoexp track {meta.session} "
            "tensorboard=runs`"
        )
    tracking.refuse_missing()
    owner = Owner(meta.session, meta.nonce, meta.experiment.project.name)
    try:
        sent = send_new(path, owner, tracking, patience_s=_PATIENCE_S, rests=rests)
    except locks.Busy as error:
        raise SessionHeld(f"{meta.session}: another process is sending; try later") from error
    if as_json:
        say_json([one.model_dump(mode="json") for one in sent])
        return 0
    for one in sent:
        left = "" if one.problem is None else f"; not all: {one.problem}"
        say(f"{one.tracker}: {one.points} points of {one.jobs} jobs{left}")
    return 1 if any(one.problem for one in sent) else 0
