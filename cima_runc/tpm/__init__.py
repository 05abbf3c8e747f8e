"""The TPM 2.0."""
