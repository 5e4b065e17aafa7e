"""A pretended CUDA for the real CuPy and dask-cuda: `scripts/pretended-gpu`."""
