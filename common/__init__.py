"""What every command needs: arguments, errors, files, progress bars."""
