"""structlog without the libraries that it imports, where they are installed, to colour tracebacks.

Nothing here colours tracebacks, and these libraries take longer to import than structlog: import
structlog from here.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["structlog"]

_UNUSED: Final = [name for name in ("rich", "colorama", "better_exceptions") if name not in sys.modules]

# A name that is None there cannot be imported for the moment.
for _name in _UNUSED:
    sys.modules[_name] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    for _name in _UNUSED:
        del sys.modules[_name]
