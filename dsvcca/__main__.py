"""`python -m dsvcca` is the command line."""

from dsvcca.cli import app

app(prog_name="dsvcca")
