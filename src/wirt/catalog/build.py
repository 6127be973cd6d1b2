"""``wirt build``: a guest image from a recipe, without a virtual machine and without root."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from wirt.catalog.catalog import Catalog, Draft, remove_tree
from wirt.catalog.disk import make_disk
from wirt.catalog.hostkeys import make_host_keys
from wirt.catalog.image import GuestImage, Kind, StoredImage, check_name
from wirt.catalog.initrd import build_initrd
from wirt.catalog.kernel import bootable, find_kernel
from wirt.catalog.overlay import build_overlay, has_helper, setup_script
from wirt.catalog.recipe import Recipe
from wirt.catalog.rootfs import make_tree
from wirt.errors import NoSpace
from wirt.units import GIB, format_size

_DISK = "disk.raw"
_KERNEL = "kernel"
_INITRD = "initrd"
# The tree of files, the same again in the disk, and the packages while they are unpacked.
_NEEDED = 5 * GIB // 2
COMMAND_LINE = "root=/dev/vda rw console=tty0 console=ttyS0 no_timer_check quiet"


def build_image(
    catalog: Catalog,
    recipe: Recipe,
    *,
    name: str = "",
    rebuild: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> StoredImage:
    """Return the image that ``recipe`` describes, made now unless the catalog has it.

    ``step`` is told what happens. ``rebuild`` makes it anew (with today's packages); older
    images of the name stay for the machines that stand on them. Two builds of one recipe at
    once: the second waits and takes the first one's image. Raises UsageError,
    MissingDependency, HostError and NoSpace; nothing is left behind then.
    """
    recipe.check()
    name = name.lower() or recipe.name
    check_name(name)
    fingerprint = recipe.fingerprint()
    asked = time.time()
    with catalog.making(fingerprint, lambda: step("waiting for another build of this image")):
        catalog.sweep()
        made = catalog.find_made(fingerprint, name)
        if made and (not rebuild or made.record.created >= asked):
            return made
        _require_space(catalog.root)
        with catalog.draft() as draft:
            return _build(catalog, draft, recipe, name, fingerprint, step)


def _build(
    catalog: Catalog,
    draft: Draft,
    recipe: Recipe,
    name: str,
    fingerprint: str,
    step: Callable[[str], None],
) -> StoredImage:
    tree, overlay, setup = (draft.scratch(part) for part in ("tree", "overlay.tar", "setup.sh"))
    overlay.write_bytes(build_overlay(recipe, make_host_keys(comment=recipe.hostname)))
    setup.write_text(setup_script(recipe))
    make_tree(recipe, tree=tree, overlay=overlay, setup=setup, step=step)
    step("extracting kernel and drivers")
    kernel, modules = find_kernel(tree)
    draft.path(_KERNEL).write_bytes(bootable(kernel.read_bytes(), path=os.fspath(kernel)))
    initrd = build_initrd(modules=modules, busybox=tree / "usr/bin/busybox")
    draft.path(_INITRD).write_bytes(initrd)
    step("writing the disk")
    make_disk(tree, draft.path(_DISK), size=recipe.size)
    remove_tree(tree)
    record = GuestImage(
        name=name,
        id=hashlib.sha256(f"{fingerprint} {secrets.token_hex(16)}".encode()).hexdigest(),
        fingerprint=fingerprint,
        kind=Kind.BUILT,
        disk=_DISK,
        format="raw",
        virtual_size=recipe.size,
        allocated_size=0,
        kernel=_KERNEL,
        initrd=_INITRD,
        command_line=" ".join([COMMAND_LINE, *recipe.kernel_arguments]),
        user=recipe.user,
        agent=True,
        helper=has_helper(),
        created=int(time.time()),
        origin=recipe.describe(),
    )
    return catalog.publish(draft, record)


def _require_space(root: Path) -> None:
    info = os.statvfs(root)
    free = info.f_bavail * info.f_frsize
    if free < _NEEDED:
        raise NoSpace(
            f"building needs {format_size(_NEEDED)} in {root}, and {format_size(free)} are free",
            hint="remove images (wirt images), or point WIRT_HOME to a larger file system",
        )
