# SPDX-License-Identifier: GPL-2.0-only
"""``python -m atomicist``."""

import sys

from atomicist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
