"""Files that other tools write: finding the arrays in them, and reading those piece by piece."""
