"""`python -m dreamkd`, for where the `dreamkd` script is not on the path."""

import sys

from dreamkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
