"""The CKKS scheme: parameters, keys, encryption, evaluation."""
