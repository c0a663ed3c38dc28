"""The systems beside OPAM, one file each, on the same data and backbone.

May import `opam.engine`, `opam.photographs`, `opam.networks` and `opam.pipeline`.
"""
