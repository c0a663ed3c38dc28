"""What people look at: the page, drawings, tables.

May import every room but `opam.app`; no stage that computes imports it.
"""
