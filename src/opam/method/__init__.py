"""The paper, a module a section; pure functions on arrays and tables.

In the order of a photograph's way: `proposals`, `filtering`, `saliency`, `colocalization`,
`objects`, `parts`, `alignment`, `fusion`. No module imports another one. May import
`opam.photographs` and `opam.pipeline`.
"""
