"""Mathematics of arrays in memory; knows nothing of storage or clusters."""
