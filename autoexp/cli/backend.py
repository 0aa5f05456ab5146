"""`backend check` and `doctor`: checks of what is around autoexp, before anything is submitted."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autoexp.cli import options


def backend_check(
    backend: Annotated[Literal["megatron"], typer.Argument(help="Whose arguments.")],
    source: Annotated[
        str, options.option("--source", metavar="DIR", text="The checkout that will run.")
    ],
    script: Annotated[
        str,
        options.option(
            "--script", metavar="FILE", text="The script in it; pretrain_gpt.py by default."
        ),
    ] = "pretrain_gpt.py",
    as_json: options.AsJson = False,
) -> int:
    """Compare a checkout's arguments with autoexp's; runs nothing.

    The exit code is 1 when they differ.

    \b
    Example:
      autoexp backend check megatron --source ~/Megatron-LM
    """
    from autoexp.backends.megatron.compatibility import compare
    from autoexp.reports.terminal import console, say_json

    found = compare(Path(source), script)
    if as_json:
        say_json(found.model_dump(mode="json"))
        return 0 if found.fits else 1
    out = console()
    kinds = (
        ("missing", "autoexp gives it, the checkout does not take it", found.missing),
        ("changed", "the checkout takes it in another way", found.changed),
        ("meaning", "it is taken, and is not what it was", found.meanings),
        ("unknown", "only the checkout knows it; it passes through", found.unknown),
    )
    for kind, meaning, names in kinds:
        for name in names:
            out.print(f"{kind}  {name}  ({meaning})", soft_wrap=True)
    verdict = "fits" if found.fits else "does not fit"
    counts = f"{len(found.missing)} missing, {len(found.changed)} changed"
    out.print(
        f"{source}: {verdict}: {found.read} arguments, {counts}, {len(found.unknown)} unknown",
        soft_wrap=True,
    )
    return 0 if found.fits else 1


def doctor(
    experiment: options.Experiment = None,
    as_json: options.AsJson = False,
) -> int:
    """Check this host and its cluster for an experiment; submits nothing.

    Account, partition, QOS, limits and the batch script are asked of SLURM. The exit code is 1
    when something is to be mended.

    \b
    Examples:
      autoexp doctor slurm=lumi
      autoexp doctor study slurm=jupiter container=jupiter container.image=/e/images/train.sif
    """
    from autoexp.cli.plan import wanted
    from autoexp.operations.doctor import examine
    from autoexp.reports.terminal import console, say_json
    from autoexp.session.create import plan_of
    from autoexp.storage.places import sessions_root

    words = list(experiment or [])
    composed = wanted(words if any("=" not in word for word in words) else ["demo", *words], None)
    trunk = plan_of(composed).trunk
    found = examine(composed.experiment, trunk, sessions_root())
    if as_json:
        lines = [finding._asdict() for finding in found]
        say_json(lines)
        return int(any(line["verdict"] == "to mend" for line in lines))
    out, mending = console(), False
    for finding in found:
        mending |= finding.verdict == "to mend"
        out.print(f"{finding.verdict:<10}{finding.what:<15} {finding.text}", soft_wrap=True)
    return int(mending)
