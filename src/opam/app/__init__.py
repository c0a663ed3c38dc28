"""What people call: classifier, ``opam``, the page that serves it, checks before a run.

May import every room; no stage that computes imports it.
"""
