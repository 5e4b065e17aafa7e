"""Side-by-side figures of this engine and its peers."""
