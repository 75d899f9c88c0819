"""A plan carried out, in this process or on a Dask cluster."""
