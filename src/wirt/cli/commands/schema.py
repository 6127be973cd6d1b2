"""wirt schema"""

from __future__ import annotations

import argparse

from wirt.cli.arguments import example
from wirt.cli.output import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    example(parser, "wirt schema > machine.schema.json")


def run(_args: argparse.Namespace) -> int:
    """Print the JSON schema of machine descriptions."""
    from wirt.spec.schema import machine_schema

    print_json(machine_schema())
    return 0
