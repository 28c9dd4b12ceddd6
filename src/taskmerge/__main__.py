"""`taskmerge`, or `python -m taskmerge`: what stops it is heard from here on, before anything else is imported."""

import os
import signal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Runs the program and ends the process with its exit code."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    from taskmerge.cli.app import main as run

    run()


def _end(number: int, frame: object) -> None:
    """Nothing has begun yet: the process just ends."""
    os.write(2, b"interrupted: no unfinished output is left\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
