"""Which comparisons, how they are done, and what they cost: before anything runs."""
