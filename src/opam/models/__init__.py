"""Networks: backbones and what stands on them."""
