"""Train and measure the comparisons: ``python -m fusionframes.ff_kernels.demo.compare --work FOLDER``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
