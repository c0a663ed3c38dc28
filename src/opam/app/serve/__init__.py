"""A page in the browser that labels photographs: ``opam serve``."""
