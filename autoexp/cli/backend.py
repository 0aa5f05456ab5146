"""`autoexp backend check`: whether the trainer that will run takes what autoexp gives it."""

import argparse
from pathlib import Path

from autoexp.backends.megatron.compatibility import compare
from autoexp.reports.terminal import console, say_json


def check(options: argparse.Namespace) -> int:
    """Compare autoexp's model of a trainer's arguments with a checkout; 1 when they differ."""
    found = compare(Path(options.source), options.script)
    if options.json:
        say_json(found.model_dump(mode="json"))
        return 0 if found.fits else 1
    out = console()
    kinds = (
        ("missing", "autoexp gives it, the checkout does not take it", found.missing),
        ("changed", "the checkout takes it in another way", found.changed),
        ("unknown", "only the checkout knows it; it passes through", found.unknown),
    )
    for kind, meaning, names in kinds:
        for name in names:
            out.print(f"{kind}  {name}  ({meaning})", soft_wrap=True)
    verdict = "fits" if found.fits else "does not fit"
    counts = f"{len(found.missing)} missing, {len(found.changed)} changed"
    out.print(
        f"{options.source}: {verdict}: {found.read} arguments, {counts}, "
        f"{len(found.unknown)} unknown",
        soft_wrap=True,
    )
    return 0 if found.fits else 1
