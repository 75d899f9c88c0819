"""The experiments of Raghu et al. 2017 and Morcos et al. 2018, on data and networks that install by name.

What the notebooks use: networks, their training, settings small and full, and a table of claims.
"""
