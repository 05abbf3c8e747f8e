"""The agent's reports to its fleet's service: the host pushes, nothing listens on it."""
