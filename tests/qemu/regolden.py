"""Write the golden command lines anew; look at ``git diff`` before you commit them.

python -m tests.qemu.regolden [NAME …]
"""

import sys

from tests.qemu import machines


def main(names: list[str]) -> None:
    for name in names or machines.names():
        text = machines.readable(machines.compiled(name))
        (machines.GOLDEN / f"{name}.argv").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
