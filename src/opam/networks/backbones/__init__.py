"""The pretrained backbone: its maps, its weights, the layers that training leaves alone."""
