"""Leaves the request for a checkpoint now, or a cooldown from it, in a session's inbox."""

import getpass
import uuid
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from autoexp.config.experiment import CheckpointSource
from autoexp.dotted import set_value
from autoexp.errors import BadInput
from autoexp.model import first_problem
from autoexp.operations.on_request import save
from autoexp.planning.standalone import cooldown_from
from autoexp.rules.actions import LaunchedCooldown
from autoexp.session.find import own_session_path, whose_turn
from autoexp.session.inbox import SaveRequest, enqueue
from autoexp.session.meta import output_root
from autoexp.session.session import Session


def cooldown_of(words: Sequence[str], name: str) -> LaunchedCooldown:
    """Read a decay written as `fraction=0.1`, `shape=linear`; raises BadInput."""
    decay: dict[str, Any] = {}
    for word in words:
        key, is_set, text = word.partition("=")
        if not is_set:
            raise BadInput(f"--decay {word}: write KEY=VALUE, as in `--decay fraction=0.1`")
        try:
            set_value(decay, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise BadInput(f"--decay {word}: {text!r} is no value") from error
    try:
        return LaunchedCooldown.model_validate({"decay": decay, "name": name})
    except ValidationError as error:
        raise BadInput(f"--decay: {first_problem(error)}") from error


def enqueue_save(
    session_name: str,
    job_name: str | None,
    cooldown: LaunchedCooldown | None,
    *,
    restart: bool,
    command: str,
) -> str:
    """Enqueue the request, unless it is known to be refused; returns what is to happen.

    Raises BadInput where the job cannot save now, or no cooldown can branch there.
    """
    session = Session.load(own_session_path(session_name))
    job = session.job(job_name or next(iter(session.jobs)))
    request = SaveRequest(
        job=job.spec.name,
        request=uuid.uuid4().hex,
        restart=restart,
        cooldown=cooldown,
        by=f"autoexp {command} by {getpass.getuser()}",
    )
    save.refuse(job, request)
    what = "to save a checkpoint now"
    if cooldown is not None:
        # As far as it has come: where it will save, only the trainer knows.
        here = CheckpointSource(iteration=job.iteration or 1, path=job.spec.save_dir)
        root = output_root(session.experiment, session.path)
        cooldown_from(session.experiment, job.spec, here, cooldown, root)
        what += ", and a cooldown to start from it"
    enqueue(session.path, request)
    return f"{job.spec.name}: {what} ({whose_turn(session)})"
