"""`python -m dreamkd.cli`, the same as `python -m dreamkd`."""

import sys

from dreamkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
