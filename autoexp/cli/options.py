"""Options that several commands share."""

import argparse


def add_experiment(command: argparse.ArgumentParser) -> None:
    """Which experiment: a configuration and overrides."""
    command.add_argument(
        "experiment",
        nargs="*",
        metavar="CONFIG|OVERRIDE",
        help="a configuration's name or YAML file, and overrides such as backend.args.lr=1e-3",
    )


def add_points(command: argparse.ArgumentParser) -> None:
    """Which experiment, and which points of its sweep."""
    add_experiment(command)
    command.add_argument(
        "--subset", metavar="NUMBERS", help="some points of a sweep, such as 3,5-7"
    )


def add_origin(command: argparse.ArgumentParser) -> None:
    """An older session to start from."""
    command.add_argument(
        "--from",
        dest="origin",
        metavar="SESSION[:JOB[@ITERATION]]",
        help="again as a session was, or a cooldown of it, or cooldowns from a checkpoint of it",
    )


def add_agreement(command: argparse.ArgumentParser) -> None:
    """Agreeing beforehand to what the plan costs."""
    command.add_argument(
        "--yes", "-y", action="store_true", help="agree to a plan above budget.confirm_above"
    )


def add_session(command: argparse.ArgumentParser) -> None:
    """Which session."""
    command.add_argument("session", metavar="SESSION", nargs="?", help="the newest by default")


def lines(word: str) -> int:
    """A number of lines."""
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} lines: 0 or more")
    return number


def hours(word: str) -> float | None:
    """GPU hours, or `none`."""
    if word == "none":
        return None
    hours = float(word)
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} GPU hours: above 0")
    return hours
