"""The measurement log: records, partitions, and where they are kept."""
