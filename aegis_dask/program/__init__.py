"""Programs on encrypted tensors: captured once, then run encrypted, simulated or symbolically."""
