"""A server that speaks the hub's protocol, and ways to speak to it."""

from dataclasses import dataclass
from typing import Any

import httpx
from huggingface_hub import HfApi

from tests.integration.web.site import Site


@dataclass
class Hub:
    """A server, and the client's library pointed at it."""

    site: Site
    url: str

    def api(self, token: str | None = None) -> HfApi:
        return HfApi(endpoint=self.url, token=token or self.site.ada.token)

    def send(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> httpx.Response:
        """Send what the library would not; ``path`` may be a whole address."""
        headers = {"Authorization": f"Bearer {token or self.site.ada.token}"}
        url = path if path.startswith("http") else self.url + path
        return httpx.request(
            method, url, headers={**headers, **options.pop("headers", {})}, timeout=60, **options
        )
