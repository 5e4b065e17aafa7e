"""RNS polynomials over ``Z_Q[X]/(X^N + 1)``: primes, transforms, base conversion, sampling."""
