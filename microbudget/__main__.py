"""``python -m microbudget``: the same as the command ``microbudget``."""

import sys

from .cli import main

sys.exit(main())
