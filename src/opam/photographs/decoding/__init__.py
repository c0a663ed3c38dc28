"""Photographs as pixels: archives, formats, samples of any depth."""
