"""``python -m aio_transfer``: the command line where no script is on the path."""

from aio_transfer.cli import main

if __name__ == "__main__":
    main()
