"""How a network is computed: features of boxes, kept, and a linear discriminant of them."""
