"""CPU kernels: Numba functions over explicit LLVM vectors."""
