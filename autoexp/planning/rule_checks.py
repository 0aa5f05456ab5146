"""Validates rules against the experiment before anything is submitted."""

from collections.abc import Mapping

from autoexp.config.compose import Composed, compose
from autoexp.config.experiment import Experiment
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.jobs.backend_changes import changed_backend
from autoexp.rules.actions import Launch, Restart
from autoexp.rules.ruleset import named
from autoexp.templates import fill, fill_tree, names_in

Values = Mapping[str, str]


def validate_rules(experiment: Experiment) -> None:
    """Raise BadInput for rules whose actions are impossible, before anything is submitted."""
    for name, rule in named(experiment.monitoring):
        for entry in rule.actions:
            action = entry.action
            try:
                if isinstance(action, Launch) and action.config is not None:
                    sample = {known: "1" for text in action.templates() for known in names_in(text)}
                    compose_launched(action, fill(action.name, sample), sample)
                elif isinstance(action, Restart) and action.backend:
                    changed_backend(experiment.backend, action.backend)
            except BadInput as error:
                raise BadInput(f"rule {name}: {action.kind}: {error}") from error


def compose_launched(launch: Launch, name: str, values: Values) -> Composed:
    """Compose the experiment that a rule launches; values are put in as data afterwards."""
    choices = [f"{group}={choice}" for group, choice in launch.choose.items()]
    changes = {**fill_tree(launch.set, values), "project.name": name}
    return compose(launch.config, choices, setting(changes))
