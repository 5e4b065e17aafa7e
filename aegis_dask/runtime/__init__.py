"""Running programs on Dask: cutting into tasks, placing, executing, measuring."""
