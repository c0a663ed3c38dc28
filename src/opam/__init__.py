"""Object-Part Attention Model: fine-grained recognition from image labels alone."""
