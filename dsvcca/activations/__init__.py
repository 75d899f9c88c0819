"""The store of activations: a population of representations."""
