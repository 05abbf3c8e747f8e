"""The verifier as a service: a fleet of hosts, proved all the time. ``docs/fleet.md`` tells how."""
