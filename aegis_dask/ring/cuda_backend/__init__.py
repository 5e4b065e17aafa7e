"""CKKS kernels on NVIDIA GPUs: CUDA C++ sources, compiled at run time, and their launches."""
