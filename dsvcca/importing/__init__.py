"""Files that other tools wrote, brought into a store."""
