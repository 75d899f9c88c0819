"""Objects on disk or behind a URL: whole or not at all, checked when read."""
