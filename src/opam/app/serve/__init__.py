"""A page in the browser that labels photographs, and the service behind it: ``opam serve``."""

from opam.pipeline.errors import OpamError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise OpamError(f"{error.name} is not installed; `pip install 'opam[serve]'`") from None
