"""``python -m wirt`` is ``wirt``."""

from wirt.cli.main import program

program()
