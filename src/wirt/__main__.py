"""``python -m wirt`` is ``wirt``."""

import sys

from wirt.cli.main import main

sys.exit(main())
