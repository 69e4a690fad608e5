"""`blocklora` and `python -m blocklora_lib.cli`, from a bare install of the library, too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the packages of the suite, say in one sentence how to get them.

    Exit codes are those of `options.OneSentence`.
    """
    # nbformat's jsonschema would compile 38 grammars of URIs with it, for seconds, and check none
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    try:  # with all imports in it: an interrupt may come at any of them
        from .exits import missing_package

        try:
            from .app import app
        except ModuleNotFoundError as error:
            print(f"error: {missing_package(error)}", file=sys.stderr)
            sys.exit(2)
        app()
    except KeyboardInterrupt:  # before a command has begun, which says more
        sys.exit(130)


if __name__ == "__main__":
    main()
