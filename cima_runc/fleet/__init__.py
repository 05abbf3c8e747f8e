"""The verifier as a service: a fleet of hosts, proved all the time (docs/fleet/operate.md)."""
