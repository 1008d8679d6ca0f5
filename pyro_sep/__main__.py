"""The program ``pyro-sep``, which is interrupted without a traceback also while it starts."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from pyro_sep.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
