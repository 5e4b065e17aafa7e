"""For ``dask scheduler`` and ``dask worker``: ``--preload aegis_dask.runtime.preload``.

Importing it sets Dask's configuration (`settings.CONFIG`) before the server is made. Give it on the
command line: Dask imports modules that its configuration names too late for some of the settings.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

import dask.config

from aegis_dask.runtime.security import ENCRYPTED, is_loopback
from aegis_dask.runtime.settings import CONFIG

# Of Dask's, so that it is seen where Dask's messages are.
logger = logging.getLogger("distributed.aegis")

dask.config.set(CONFIG)


def dask_setup(server: Any) -> None:
    """Warn if a server of Dask's takes unencrypted connections from other machines."""
    url = urlsplit(server.address)
    if url.scheme not in (*ENCRYPTED, "inproc") and not is_loopback(url.hostname or ""):
        logger.warning(
            "%s takes connections from other machines without encryption: whoever reaches it can "
            "run code here. Give it certificates (aegis certs make; --tls-ca-file, --tls-cert, "
            "--tls-key), or --host 127.0.0.1",
            server.address,
        )
