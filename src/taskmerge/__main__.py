"""`python -m taskmerge`."""

from taskmerge.cli.app import main

if __name__ == "__main__":
    main()
