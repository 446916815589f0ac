"""Shared by all commands: arguments, errors, files, progress bars."""
