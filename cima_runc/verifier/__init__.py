"""Verification and appraisal of evidence."""
