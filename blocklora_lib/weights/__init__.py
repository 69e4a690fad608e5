"""Where a backbone's weights come from: settings that name them, files, tags, downloads.

Knows core and data.
"""

from ..core.lean_imports import install

install()
