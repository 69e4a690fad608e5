"""`python -m blocklora_lib.cli` is `blocklora`."""

from .app import app

app()
