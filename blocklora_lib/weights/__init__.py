"""Where a backbone's weights come from: settings that name them, files, tags, downloads,
checkpoints.

Knows core and data.
"""
