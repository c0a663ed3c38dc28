"""How a network is trained: parameters, sample tables, losses, the loop."""
