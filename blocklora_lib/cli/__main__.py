"""`blocklora` and `python -m blocklora_lib.cli`, from a bare install of the library, too."""

from __future__ import annotations

import sys

from .exits import missing_package


def main() -> None:
    """Run the command line; without the packages of the suite, say in one sentence how to get them.

    Exit codes are those of `options.OneSentence`.
    """
    try:
        from .app import app
    except ModuleNotFoundError as error:
        print(f"error: {missing_package(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
