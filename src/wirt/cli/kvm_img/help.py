"""``--help`` and ``--version``."""

from __future__ import annotations

from wirt.cli.kvm_img.failure import Done, program
from wirt.image.registry import FORMATS
from wirt.version import VERSION

_SPEAKS = "7.2.0"
"""The version of qemu-img whose command line this is."""

SYNTAX = {
    "amend": "[-f FMT] [-t CACHE] [-p] [-q] [--force] -o OPTIONS FILE",
    "bench": "[-c COUNT] [-d DEPTH] [-f FMT] [-o OFFSET] [-s SIZE] [-S STEP] [-w] [-q] [-U]\n"
    "        [--flush-interval=N] [--no-drain] [--pattern=BYTE] [-i AIO] [-n] [-t CACHE] FILE",
    "bitmap": "(--add | --remove | --clear | --enable | --disable | --merge SOURCE)...\n"
    "        [-b SOURCE_FILE [-F FMT]] [-g GRANULARITY] [-f FMT] FILE BITMAP",
    "check": "[-f FMT] [-r leaks|all] [--output=human|json] [-T CACHE] [-q] [-U] FILE",
    "commit": "[-f FMT] [-b BASE] [-d] [-r RATE] [-t CACHE] [-p] [-q] FILE",
    "compare": "[-f FMT] [-F FMT] [-s] [-T CACHE] [-p] [-q] [-U] FILE1 FILE2",
    "convert": "[-f FMT] [-O FMT] [-o OPTIONS] [-c] [-l SNAPSHOT] [-B BACKING [-F FMT]] [-n]\n"
    "        [-S SIZE] [-C] [-m N] [-W] [-r RATE] [-t CACHE] [-T CACHE] [-p] [-q] [-U]\n"
    "        [--target-is-zero] [--target-image-opts] [--bitmaps [--skip-broken-bitmaps]]\n"
    "        [--salvage] FILE [FILE2 ...] TARGET",
    "create": "[-f FMT] [-b BACKING [-F FMT]] [-u] [-o OPTIONS] [-q] FILE [SIZE]",
    "dd": "[-f FMT] [-O FMT] [-U] [bs=SIZE] [count=N] [skip=N] if=FILE of=FILE",
    "info": "[-f FMT] [--backing-chain] [--output=human|json] [-U] FILE",
    "map": "[-f FMT] [--start-offset=N] [--max-length=N] [--output=human|json] [-U] FILE",
    "measure": "[-O FMT] [-o OPTIONS] [--output=human|json] (--size N | [-f FMT] [-l SNAPSHOT]\n"
    "        [-U] FILE)",
    "snapshot": "[-l | -a NAME | -c NAME | -d NAME] [-q] [-U] FILE",
    "rebase": "[-f FMT] [-b BACKING] [-F FMT] [-u] [-t CACHE] [-T CACHE] [-p] [-q] [-U] FILE",
    "resize": "[-f FMT] [--preallocation=MODE] [--shrink] [-q] FILE [+|-]SIZE",
}


def version_line(name: str) -> str:
    return f"{name} version {_SPEAKS} (wirt {VERSION})"


def print_help() -> None:
    """Print all commands, and stop."""
    name = program()
    lines = [
        version_line(name),
        f"usage: {name} [-h | -V] COMMAND [OPTIONS]",
        "",
        *(f"  {command} {syntax}" for command, syntax in SYNTAX.items()),
        "",
        "Images are opened as --image-opts driver=…,file.filename=… or as json:{…} too;",
        "passphrases come from --object secret,id=ID,file=PATH. Sizes take k, M, G, T, P, E.",
        "",
        f"Supported formats: {' '.join(sorted(known.name for known in FORMATS))}",
    ]
    print("\n".join(lines))
    raise Done
