"""The sensor: an eBPF LSM program that says what watched containers execute, and its loader."""
