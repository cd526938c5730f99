"""Entry point of `python -m keras_committee.cli`."""

import sys

from keras_committee.cli import main

if __name__ == "__main__":
    sys.exit(main())
