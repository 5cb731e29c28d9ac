"""``python -m aio_transfer.cli``: the same as ``python -m aio_transfer``."""

from aio_transfer.cli import main

if __name__ == "__main__":
    main()
