"""``cima``: what people type."""
