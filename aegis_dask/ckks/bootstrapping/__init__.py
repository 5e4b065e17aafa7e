"""Bootstrapping: fresh levels for ciphertexts, without the secret key."""
