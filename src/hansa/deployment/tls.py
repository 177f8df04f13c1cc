"""TLS 1.3 and nothing older, of a gRPC that can be told no least version.

What gRPC can be told is the list of cipher suites for TLS 1.2, once, by the environment, when it is imported. Certificates of a
federation are P-256 without exception, and a list of suites for RSA alone leaves TLS 1.2 none that both sides could take. The
suites of TLS 1.3 are not in that list. So the package imports this file before any other of its own.

Source: RFC 8446, section 4.2.3 and appendix B.4; gRPC, doc/environment_variables.md.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from hansa.errors import ConfigError

_NAME: Final = "GRPC_SSL_CIPHER_SUITES"
_NONE_OF_OURS: Final = "ECDHE-RSA-AES256-GCM-SHA384"

_LATE: Final = "grpc" in sys.modules and os.environ.get(_NAME) != _NONE_OF_OURS
os.environ[_NAME] = _NONE_OF_OURS
# What gRPC writes to standard error by itself says again, for its developers, what an error of ours says in a sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def require_newest() -> None:
    """Go on only if gRPC speaks TLS 1.3 alone in this process.

    Raises:
        ConfigError: gRPC was imported before it could be told.
    """
    if _LATE:
        raise ConfigError(
            "this process imported grpc before hansa.deployment, and would accept TLS 1.2: import hansa.deployment first"
        )
