"""Work divided by the limbs of polynomials instead of by ciphertexts: what others do."""
