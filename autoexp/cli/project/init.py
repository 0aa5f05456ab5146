"""`autoexp init`: a project of one's own, from a trainer's command and one line of its log."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.cli.project.sketch import Saves, Trainer

_MARK = "# <-- look at this:"
"""What a person has to decide; `autoexp init` says how many lines have it."""
_IGNORED = ("sessions/", ".venv/", "__pycache__/")


def init(
    directory: Annotated[
        str | None, options.argument("DIR", "Where; the working directory by default.")
    ] = None,
    command: Annotated[
        str | None,
        options.option("--command", metavar="LINE", text="How your trainer is started, in quotes."),
    ] = None,
    line: Annotated[
        str | None,
        options.option("--log-line", metavar="LINE", text="A line of its log with an iteration."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        options.option("--checkpoint", metavar="PATH", text="One of its checkpoints."),
    ] = None,
    name: Annotated[
        str | None, options.option("--name", metavar="NAME", text="Its name; DIR's by default.")
    ] = None,
) -> int:
    """Begin a project for a trainer of your own: configuration, site, deployments.

    What is not given is asked for on a terminal, and otherwise a marked line.

    \b
    Example:
      autoexp init --command "python train.py --steps 1000 --save-every 100 --lr 1e-3 --out out" \\
        --log-line "step 10 loss 3.21 lr 1e-3" --checkpoint out/step-100
    """
    from autoexp.cli.project import sketch
    from autoexp.config.compose import compose
    from autoexp.reports.terminal import say
    from autoexp.storage import atomic

    root = Path(directory or ".").absolute()
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-._") or "experiment"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
        raise BadInput(f"--name {name!r}: letters, digits, `.`, `_`, `-`; 40 characters at most")
    command = command or _asked("How is your trainer started? ")
    if not command:
        raise BadInput('--command: give the line with which it is started, as "python train.py"')
    line = line or _asked("A line of its log that says the iteration (empty: later): ")
    checkpoint = checkpoint or _asked("The path of one of its checkpoints (empty: later): ")
    trainer = sketch.trainer(command, root)
    pattern = sketch.log_line(line) if line else None
    saves = sketch.saves(checkpoint) if checkpoint else None
    files = {
        f"configs/{name}.yaml": _configuration(name, trainer, pattern, saves),
        "configs/slurm/site.yaml": _SITE,
        "prefect.yaml": _deployments(name),
    }
    taken = [path for path in files if (root / path).exists()]
    if taken:
        raise BadInput(f"{root}: {', '.join(taken)} is there already; remove it, or give --name")
    for path, text in files.items():
        atomic.make_directory((root / path).parent, by_umask=True)
        atomic.write(root / path, text, by_umask=True)
        say(f"written  {root / path}")
    for ignored in _IGNORED:
        atomic.append_once(root / ".gitignore", ignored)
    marked = files[f"configs/{name}.yaml"].count(_MARK)
    if marked:
        many = "1 line is" if marked == 1 else f"{marked} lines are"
        say(f"\n{many} marked `{_MARK}` in configs/{name}.yaml", error=True)
    compose(str(root / "configs" / f"{name}.yaml"))
    here = "" if root == Path.cwd() else f"cd {root} && "
    say(f"\nNext: {here}autoexp plan {name}, then autoexp run {name}")
    return 0


def _asked(question: str) -> str:
    from autoexp.reports.terminal import ask

    return ask(question).strip() if sys.stdin.isatty() and sys.stdout.isatty() else ""


def _configuration(
    name: str, trainer: "Trainer", pattern: str | None, saves: "Saves | None"
) -> str:
    from autoexp.cli.project import sketch
    from autoexp.dotted import dump

    lines = [
        f"# {name}: a trainer of our own. `autoexp plan {name}` shows what would be submitted.",
        "defaults:",
        "  - slurm: local       # this machine; slurm=site for the cluster of slurm/site.yaml",
        "  - container: none",
        "  - monitoring: basic  # production restarts hanging and crashed jobs",
        "  - _self_",
        "",
        f"project: {{name: {name}}}",
        "",
        "backend:",
        "  kind: command",
        "  source: .               # this project: paths here are relative to it",
        "  # python: /path/to/venv/bin/python   # {python}, where the trainer has its own",
        f"  command: {_flow(trainer.words)}",
    ]
    if not trainer.saves:
        lines[-1] += f"  {_MARK} nothing says where checkpoints go: {{save_dir}} in it"
    if trainer.cooldown:
        lines.append(f"  cooldown: {_flow(trainer.cooldown)}")
    else:
        lines.append(
            "  # What a cooldown changes in it, such as {--decay-from: '{branch_iteration}', "
            "--decay-steps: '{decay_iterations}'}"
        )
        lines.append(f"  cooldown: {{}}  {_MARK} without it there are no cooldowns")
    known = saves or sketch.Saves({"name": "step-{iteration}", "must_exist": ["*"]}, is_guess=True)
    lines.append(f"  saves: {_flow(known.values)}")
    if known.is_guess:
        lines[-1] += f"  {_MARK} what a complete one has, and a torn one has not"
    if pattern is None:
        lines.append(
            f"  log_line: 'step (?P<iteration>[0-9]+)'  {_MARK} a pattern of its progress lines"
        )
    else:
        lines.append(f"  log_line: {_flow(pattern)}")
    lines.append("  args:")
    for key, default in {"train_iters": 1000, "save_interval": 100}.items():
        known_value = trainer.args.get(key)
        lines.append(f"    {key}: {default if known_value is None else known_value}")
        if known_value is None:
            lines[-1] += f"  {_MARK} the command does not say; write {{{key}}} in it"
    others = {k: v for k, v in trainer.args.items() if k not in ("train_iters", "save_interval")}
    lines += [f"    {line}" for line in dump(others).splitlines()] if others else []
    at = sketch.branch_point(trainer.args)
    if trainer.cooldown and at is not None:
        length = max(1, at // 5)
        lines += [
            "",
            "cooldowns:",
            f"  - at: [{at}]",
            f"    decay: {{iterations: {length}, shape: linear}}",
        ]
    else:
        lines += [
            "",
            "# cooldowns:",
            "#   - at: [750]",
            "#     decay: {iterations: 150, shape: linear}",
        ]
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=100_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("...").strip()


_SITE = """\
# Our cluster: slurm=site. `autoexp config list slurm` has sites that are known already.
defaults: [base, _self_]

# partition: standard-g     # `sinfo` lists them; $SLURM_PARTITION otherwise
# account: project_123      # $SLURM_ACCOUNT otherwise
gpus_per_node: 0
# cpus_per_task: 56
# time_limit_min: 2880
# launcher: torchrun        # or srun; none starts the command once a job
# setup: [module load python]
"""


def _deployments(name: str) -> str:
    """The deployments of autoexp, which begin with this project's configuration."""
    from autoexp.storage import places

    text = (places.SHIPPED.parent / "prefect.yaml").read_text(encoding="utf-8")
    head = (
        f"# Deployments of {name}: `prefect deploy --all` in this directory, or `autoexp deploy`.\n"
    )
    body = text.partition("\nname: ")[2].replace("{config: demo}", f"{{config: {name}}}")
    # A server may have the deployments of several projects.
    return head + "name: " + body.replace("  - name: ", f"  - name: {name}-")
