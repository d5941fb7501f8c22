"""The program `pse`. It is outside the package, so that Ctrl-C is quiet while the package is still being imported."""

import sys


def main() -> int:
    try:
        from pse_sdk.cli import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
