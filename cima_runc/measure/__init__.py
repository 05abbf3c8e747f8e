"""What is measured of a container before it runs, and how."""
