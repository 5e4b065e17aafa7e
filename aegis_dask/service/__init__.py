"""Client and server roles: who makes keys, who holds what, what passes between them."""
