"""The CUDA sources on the host: compiled by g++, run thread by thread (see emulation.h)."""
