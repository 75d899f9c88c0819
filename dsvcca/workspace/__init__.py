"""The workspace: bases on disk, and partial results."""
