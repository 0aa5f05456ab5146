"""From a composed experiment to the plan of its session: one training, or each point of a sweep."""

from collections.abc import Container, Iterator
from pathlib import Path

from autoexp.config.compose import Composed
from autoexp.config.experiment import Experiment
from autoexp.config.sweep_expand import chosen
from autoexp.config.sweep_names import as_word
from autoexp.config.sweep_points import Point, some
from autoexp.config.values.repeats import seed_key
from autoexp.dotted import flat
from autoexp.errors import BadInput
from autoexp.planning.cost import together
from autoexp.planning.plan import Plan, disk_of, make_plan
from autoexp.planning.rule_checks import validate_rules


def plan_study(composed: Composed, output_root: Path) -> Plan:
    """All jobs of a session, point by point, planned once: the confirmed plan is submitted.

    Raises BadInput with the errors of up to three points, by number and name, for rules with
    impossible actions, and for a tracker whose package is not installed.
    """
    validate_rules(composed.experiment)
    if composed.experiment.tracking is not None:
        composed.experiment.tracking.refuse_missing()
    if not composed.points:
        assert composed.experiment.sweep is None, "a sweep has points"
        plan = make_plan(composed.experiment, output_root)
        return plan.model_copy(
            update={"notes": (*_derived_notes(composed.experiment), *plan.notes)}
        )
    plans: list[Plan] = []
    refused: list[str] = []
    for point in composed.points:
        try:
            plans.append(_plan_point(point, output_root))
        except BadInput as error:
            refused.append(f"{point.title}: {error}")
    if refused:
        raise BadInput("\n".join(some(refused)))
    jobs = tuple(job for plan in plans for job in plan.jobs)
    first = composed.points[0]
    shared = _derived_notes(first.experiment, apart=first.settings)
    _refuse_doubles([job.name for job in jobs])
    notes = dict.fromkeys([*shared, *(note for plan in plans for note in plan.notes)])
    if composed.experiment.repeats > 1 and any(not _has_seed(point) for point in composed.points):
        notes["repeats: the backend has no seed that is known: these runs differ by chance"] = None
    cost = together([plan.cost for plan in plans if plan.cost is not None])
    # What follows the end of all trainings follows once, whatever the number of points.
    launches = dict.fromkeys(launched for plan in plans for launched in plan.launches)
    whole = Plan(jobs=jobs, notes=tuple(notes), cost=cost, launches=tuple(launches))
    return whole.model_copy(update={"disk": disk_of(composed.experiment, whole)})


def _derived_notes(experiment: Experiment, apart: Container[str] = ()) -> Iterator[str]:
    """What is derived: each setting, and how; without those that differ between points."""
    found = flat({"backend": experiment.backend.model_dump(mode="json")})
    for key, formula in experiment.derived.items():
        if key in found and key not in apart:
            yield f"{key} = {as_word(found[key])}, derived: {formula}"


def _has_seed(point: Point) -> bool:
    return seed_key(point.experiment.model_dump(include={"backend"})) is not None


def _plan_point(point: Point, output_root: Path) -> Plan:
    plan = make_plan(point.experiment, output_root)
    changes = {"settings": point.settings}
    return plan.model_copy(
        update={"jobs": tuple(job.model_copy(update=changes) for job in plan.jobs)}
    )


def _refuse_doubles(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{name}: two jobs of the sweep have this name; see `sweep.name`")
        seen.add(name)


def subset(composed: Composed, text: str | None) -> Composed:
    """Only some points, as in `--subset 3,5-7`; their names stay the same."""
    if text is None:
        return composed
    if not composed.points:
        raise BadInput(f"--subset {text}: there is no sweep")
    numbers = chosen(text, len(composed.points))
    return composed._replace(points=tuple(composed.points[number - 1] for number in numbers))
