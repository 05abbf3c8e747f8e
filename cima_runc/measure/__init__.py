"""Measurements that are not the kernel's: configuration, root filesystem, host services."""
