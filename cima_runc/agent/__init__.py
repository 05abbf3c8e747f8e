"""The agent: registers containers, keeps their partitions, binds them into the TPM."""
