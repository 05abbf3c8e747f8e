"""cima-runc: an OCI runtime that wraps runc and measures every container into a log of its own."""

__version__ = "0.1.0"
