"""Reference values: what a container should be, from the image and from a trusted host."""
