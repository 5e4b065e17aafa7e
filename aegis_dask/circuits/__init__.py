"""Encrypted building blocks of transformers: packing, linear layers, attention, normalisation."""
