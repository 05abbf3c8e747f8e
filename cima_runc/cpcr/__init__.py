"""Virtual registers, the tree over them, and their binding into one PCR."""
