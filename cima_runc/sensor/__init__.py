"""The eBPF sensor: which container executed or mapped what."""
