"""What runs several times per container, in place of runc and as its hooks.

Nothing here imports more than the standard library and :mod:`cima_runc.base`.
"""
