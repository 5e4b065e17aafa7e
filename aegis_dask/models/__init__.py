"""Models: checkpoints, tokenised text, and the plaintext reference they are checked against."""
