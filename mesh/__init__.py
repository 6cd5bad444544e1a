"""How to be a service of the mesh. Knows none of them."""
