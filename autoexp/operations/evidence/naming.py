"""Names of ranks in a sentence."""

from collections.abc import Iterable

_SHOWN = 5


def ranks(found: Iterable[int]) -> str:
    """`rank 3`, `ranks 3, 4`, `ranks 0, 1, 2, 3, 4 and 3 more`."""
    ordered = sorted(found)
    shown = ", ".join(str(rank) for rank in ordered[:_SHOWN])
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"rank {shown}" if len(ordered) == 1 else f"ranks {shown}{more}"


def others(count: int) -> str:
    """`1 other`, `3 others`."""
    return f"{count} other{'s' if count > 1 else ''}"
