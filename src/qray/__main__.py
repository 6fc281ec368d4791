"""`python -m qray`, which needs no installed script."""

from qray.cli import main

if __name__ == "__main__":
    main()
