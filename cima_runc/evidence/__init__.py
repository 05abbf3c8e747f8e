"""What the agent hands to a verifier."""
