"""What an answer is worth: metrics, tables of scores, looks at test, what a result was made from.

May import `opam.method`, `opam.photographs` and `opam.pipeline`.
"""
