"""`python -m soundmill`: the same as the `soundmill` command."""

from soundmill.commands import app

app()
