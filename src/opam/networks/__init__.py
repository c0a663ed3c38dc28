"""Any backbone as feature maps, linear layers on it, and their weights.

May import `opam.pipeline`.
"""
