"""Train and measure the comparisons: ``python -m fusionframes.ff_kernels.paper --work FOLDER``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
