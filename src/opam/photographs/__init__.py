"""From what a team has to pixels: data sets, archive, decoding, copies and bursts, splits, folds.

May import `opam.networks` (bursts are told by features) and `opam.pipeline`.
"""
