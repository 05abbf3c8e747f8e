"""The rules of appraisal: each compares one kind of record with reference values and the policy."""
