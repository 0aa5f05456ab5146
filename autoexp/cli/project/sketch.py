"""Derives a trainer's description from its command, a line of its log, and a checkpoint's path."""

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autoexp.backends.progress_line import ProgressPattern
from autoexp.backends.protocol import Progress
from autoexp.errors import BadInput

_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"
_WORDS = {
    "iteration": r"(?:global[ _]?)?(?:iteration|iter|step|update|it)s?",
    "loss": r"(?:(?:lm|train|training)[ _/]?)?(?:loss|nll)",
    "learning_rate": r"(?:learning[ _]?rate|lr)",
    "seconds": r"(?:seconds|secs?|s)[ _/]*(?:per[ _])?/?(?:iteration|iter|step|it)",
}
_GROUPS = {
    "iteration": r"(?P<iteration>[0-9]+(?:,[0-9]{3})*)",
    **{name: rf"(?P<{name}>[-+.,0-9eEnaif]+)" for name in list(_WORDS)[1:]},
}
# Options by what they mean, as trainers spell them.
_OPTIONS = {
    "train_iters": r"(?:train|max|num|total|n)?-?(?:iters|iterations|steps|updates)",
    "save_interval": r"(?:save|ckpt|checkpoint)-?(?:interval|every|steps|freq|iters)",
    "lr": r"lr|learning-rate|max-lr|peak-lr",
    "min_lr": r"min-lr|final-lr|end-lr",
    "lr_warmup_iters": r"(?:lr-)?warmup(?:-(?:iters|steps))?",
    "save_dir": r"(?:save|out|output|ckpt|checkpoint)s?(?:-(?:dir|path|folder))?|work-?dir",
    "decay_iterations": r"(?:lr-)?(?:decay|cooldown|anneal)-(?:iters|steps|iterations|length|for)",
    "branch_iteration": r"(?:lr-)?(?:decay|cooldown|anneal)-(?:from|start|begin|at)",
}
_OF_COOLDOWNS = ("decay_iterations", "branch_iteration")
_INTEGERS = ("train_iters", "save_interval", "lr_warmup_iters")


class Trainer(NamedTuple):
    """A command in autoexp's words."""

    words: tuple[str, ...]
    """Its words, with placeholders."""
    args: dict[str, int | float]
    """Values of the placeholders."""
    cooldown: dict[str, str]
    """Options of the decay, with placeholders."""
    saves: bool
    """True if the command says where checkpoints go."""


def trainer(command: str, source: Path) -> Trainer:
    """Read a command line; raises BadInput for one that has no words.

    A script below `source` becomes `{source}/…`, the interpreter `{python}`.
    """
    try:
        given = shlex.split(command)
    except ValueError as error:
        raise BadInput(f"--command: cannot be read as a shell would ({error})") from error
    if not given:
        raise BadInput("--command: is empty; give the line with which your trainer is started")
    words: list[str] = []
    args: dict[str, int | float] = {}
    cooldown: dict[str, str] = {}
    meaning, option = None, ""
    for number, text in enumerate(given):
        name, joined, value = text.partition("=") if text.startswith("-") else (text, "", "")
        if text.startswith("-"):
            meaning, option = _meaning(name), name
            if not joined:
                words.append(text)
                continue
        else:
            value = text
        filled = _filled(meaning, value, args)
        if meaning in _OF_COOLDOWNS:
            # The training itself keeps what it was given.
            cooldown[option] = f"{{{meaning}}}"
        if filled is None:
            filled = _placed(value, source, first=number == 0)
        words.append(f"{name}={filled}" if joined else filled)
        meaning = None
    return Trainer(tuple(words), args, cooldown, "{save_dir}" in " ".join(words))


def _meaning(option: str) -> str | None:
    name = option.lstrip("-").replace("_", "-").lower()
    return next((m for m, spelled in _OPTIONS.items() if re.fullmatch(spelled, name)), None)


def _filled(meaning: str | None, value: str, args: dict[str, int | float]) -> str | None:
    """The placeholder of an option's value; None where the value stays as it is."""
    if meaning is None or meaning in _OF_COOLDOWNS:
        return None
    if meaning != "save_dir":
        try:
            args[meaning] = int(value) if meaning in _INTEGERS else float(value)
        except ValueError:
            return None
    return f"{{{meaning}}}"


def _placed(word: str, source: Path, *, first: bool) -> str:
    escaped = word
    if first and re.fullmatch(r"(?:.*/)?python[0-9.]*", word):
        return "{python}"
    if word and not word.startswith("-") and (source / word).is_file():
        below = Path(word).absolute() if Path(word).is_absolute() else source / word
        if below.resolve().is_relative_to(source.resolve()):
            escaped = f"{{source}}/{below.resolve().relative_to(source.resolve())}"
    return escaped


def log_line(line: str) -> str:
    """A pattern for progress lines, made of one of them, which it is tried on.

    Raises BadInput where no number of the line is known to be an iteration.
    """
    found = {name: place for name in _WORDS if (place := _place(line, name)) is not None}
    if "iteration" not in found and (bar := re.search(r"(\d+)/\d+", line)) is not None:
        found["iteration"] = (bar.start(), r"{}/[0-9]+")
    if "iteration" not in found:
        raise BadInput(
            f"--log-line {line!r}: no number behind `iteration` or `step`, and none as in 10/1000; "
            "give a line that says its iteration, or write `log_line` yourself (docs/backends.md)"
        )
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    pattern = ".*?".join(text.replace("{}", _GROUPS[name]) for name, (_, text) in ordered)
    try:
        read = ProgressPattern(pattern).read(line.encode("utf-8", "surrogateescape"))
    except ValueError:  # an odd word of the line, in a pattern
        read = None
    if not isinstance(read, Progress) or read.unread:
        raise BadInput(
            f"--log-line {line!r}: {pattern!r} does not read it; write `log_line` yourself"
        )
    return pattern


def _place(line: str, name: str) -> tuple[int, str] | None:
    """Where a value's name begins, and the pattern from there to its number."""
    spelled = (
        rf"(?<![A-Za-z_])({_WORDS[name]})(?![A-Za-z_])(\W{{0,4}}?)\s*(?:{_NUMBER})(?![A-Za-z])"
    )
    match = re.search(spelled, line, re.IGNORECASE)
    if match is None:
        return None
    between = re.sub(r"(?:\\\s|\s)+", r"\\s*", re.escape(match[2]))
    spaces = "" if between.endswith(r"\s*") else r"\s*"
    return match.start(), f"{re.escape(match[1])}{between}{spaces}{{}}"


class Saves(NamedTuple):
    """Where checkpoints are and how one is complete, as `backend.saves` has it."""

    values: dict[str, object]
    is_guess: bool
    """True if the sign of completeness is a guess, which a person has to look at."""


def saves(example: str) -> Saves:
    """The description of checkpoints from the path of one, below the save directory.

    What lies there is looked at: a file beside it that names its number, files of JSON in it.
    """
    path = PurePosixPath(example)
    numbers = list(re.finditer(r"\d+", path.name))
    if not numbers:
        raise BadInput(f"--checkpoint {example}: its name has no iteration in it, as step-1000 has")
    last = numbers[-1]
    known: dict[str, object] = {}
    real = Path(example)
    folder = path.parent.name if len(path.parts) > 1 else ""
    if folder:
        known["folder"] = folder
    known["name"] = f"{path.name[: last.start()]}{{iteration}}{path.name[last.end() :]}"
    if (tracker := _tracker(real, int(last[0]))) is not None:
        return Saves({**known, "tracker": tracker}, is_guess=False)
    if real.is_dir() and (files := sorted(file.name for file in real.glob("*.json"))):
        return Saves({**known, "must_parse": files[:1]}, is_guess=True)
    if real.is_dir() or not path.suffix:
        return Saves({**known, "must_exist": ["*"]}, is_guess=True)
    return Saves({**known, "must_not_exist": ["../{name}.tmp"]}, is_guess=True)


def _tracker(checkpoint: Path, iteration: int) -> str | None:
    """The file beside a checkpoint that names an iteration and nothing else."""
    if not checkpoint.exists():
        return None
    for file in sorted(checkpoint.parent.glob("latest*")):
        if file.is_file() and file.stat().st_size < 200:
            numbers = re.findall(r"\d+", file.read_text(errors="replace"))
            if len(numbers) == 1 and int(numbers[0]) >= iteration:
                return file.name
    return None


def branch_point(args: dict[str, int | float]) -> int | None:
    """A checkpoint in the second half of a run; None if there is none before its end."""
    length, interval = int(args.get("train_iters", 0)), int(args.get("save_interval", 0))
    if not length or not interval:
        return None
    at = (3 * length // 4) // interval * interval
    return at if 0 < at < length else None
