"""Crops ahead of the network, scoring, training, discriminants.

May import `opam.photographs`, `opam.networks` and `opam.pipeline`; not `opam.method`.
"""
