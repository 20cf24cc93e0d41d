"""Speaks the Open Inference Protocol over plain HTTP, for the commands that ask a server."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import typer

from lrai.errors import ConfigError, LraiError, UnavailableError

Url = Annotated[
    str, typer.Option("--url", envvar="LRAI_URL", metavar="URL", help="Address of the server.")
]
DEFAULT_URL: Final = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Answer:
    """A body that the server sent, and the length of its JSON head if tensors follow it."""

    body: bytes
    head_bytes: int | None


class Client:
    """One server; each call is one request on a fresh connection."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        """Know the server at `url`, such as http://127.0.0.1:8000."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _no_url(url) from error
        if parts.scheme not in ("http", "https") or not host:
            raise _no_url(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._kind = kinds[parts.scheme]
        self._place = (host, port or {"http": 80, "https": 443}[parts.scheme])
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self.url = url

    def get(self, path: str) -> Any:
        """GET a JSON document."""
        return self._json(self.call("GET", path))

    def post(self, path: str, document: object) -> Any:
        """POST a JSON document; return the answer's, or None if it has no body."""
        return self._json(self.call("POST", path, json.dumps(document).encode()))

    def _json(self, answer: Answer) -> Any:
        try:
            return json.loads(answer.body or b"null")
        except ValueError as error:
            message = f"{self.url} does not speak the Open Inference Protocol: {error}"
            raise UnavailableError(message, hint="check the address") from error

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request; UnavailableError if nobody answers, LraiError if it is refused."""
        connection = self._kind(*self._place, timeout=self._timeout_s)
        try:
            connection.request(method, self._prefix + path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
        except ConnectionRefusedError as error:
            hint = "start a server with: lrai serve MODEL, or name another with --url"
            raise UnavailableError(f"nothing listens at {self.url}", hint=hint) from error
        except TimeoutError as error:
            message = f"{self.url} did not answer within {self._timeout_s:g} s"
            raise UnavailableError(message, hint="look at the server's log") from error
        except (OSError, http.client.HTTPException) as error:
            message = f"{self.url} cannot be asked: {error!r}"
            raise UnavailableError(message, hint="check the address") from error
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise LraiError(_refusal(response.status, content))
        head = response.getheader("Inference-Header-Content-Length")
        return Answer(content, int(head) if head else None)


def model_path(model: str, version: str = "") -> str:
    """Return the path of a model, or of one of its versions."""
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _no_url(url: str) -> ConfigError:
    return ConfigError(f"--url is {url!r}", hint=f"write it as {DEFAULT_URL}")


def _refusal(status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status} {http.client.responses.get(status, '')}".rstrip()
