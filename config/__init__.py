"""The settings of a run: flags, ranges, defaults, and networks for other image sizes."""
