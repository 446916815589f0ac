"""Multi-process training: cluster description, collective operations, local launcher."""
