"""How much an image may unfold: the budget against images made to fill a disk."""

from __future__ import annotations

from wirt.errors import OutOfBounds
from wirt.image.base import Budget, ExtentKind, Image
from wirt.image.extents import chain_extents
from wirt.image.layers import layers


def refuse_expansion(image: Image, budget: Budget) -> None:
    """Raise OutOfBounds if far more data is declared than is stored.

    Only tables are read. Compressed clusters, and many entries for one place, let a few
    MiB stand for TiB; no honest image unfolds ``budget.expansion``-fold.
    """
    stored = sum(max(each.storage.size(), each.info().allocated_size) for each in layers(image))
    most = max(budget.expansion_floor, budget.expansion * stored)
    declared = 0
    for extent in chain_extents(image):
        if extent.kind is ExtentKind.DATA:
            declared += extent.length
        if declared > most:
            raise OutOfBounds(
                f"the image declares more than {declared >> 20} MiB of data, "
                f"over {budget.expansion} times what it stores",
                path=image.storage.name,
                hint="if you trust the image: --no-limits",
            )
