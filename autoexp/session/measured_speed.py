"""The speed of a training, as measured by an earlier session."""

from autoexp.config.compose import Composed
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import Budget
from autoexp.session.session import Session, sessions_root
from autoexp.states import Kind


def with_measured_speed(composed: Composed) -> Composed:
    """The experiment, and each point of its sweep, with `budget.measured_in` resolved to a speed.

    Raises BadInput when the session has measured no speed, SessionNotFound when there is none.
    """
    known: dict[str, Session] = {}
    return composed._replace(
        experiment=_measured(composed.experiment, known),
        points=tuple(
            point._replace(experiment=_measured(point.experiment, known))
            for point in composed.points
        ),
    )


def _measured(experiment: Experiment, known: dict[str, Session]) -> Experiment:
    budget = experiment.budget
    name = budget.measured_in
    if name is None or budget.seconds_per_iteration is not None:
        return experiment
    if name not in known:
        known[name] = Session.load(sessions_root() / name)
    speed = _speed(known[name], experiment.project.name)
    changed: Budget = budget.model_copy(update={"seconds_per_iteration": speed})
    return experiment.model_copy(update={"budget": changed})


def _speed(session: Session, job: str) -> float:
    """The speed of the training of this name; else of the slowest one, to be on the safe side."""
    found = {
        name: record.mean_seconds_per_iteration
        for name, record in session.jobs.items()
        if record.spec.kind is Kind.TRAIN and record.mean_seconds_per_iteration is not None
    }
    if not found:
        raise BadInput(f"budget.measured_in: {session.id}: no training has measured its speed yet")
    return found.get(job, max(found.values()))
