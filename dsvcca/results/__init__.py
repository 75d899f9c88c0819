"""The results store: its arrays, commits, filling; opened, and as tables."""
