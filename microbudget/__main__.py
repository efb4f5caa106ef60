"""``python -m microbudget``: the command where no script was installed."""

import sys

from .course.cli import main

sys.exit(main())
