"""Model facts from Hugging Face, its mirrors and ModelScope: config.json, the index and headers, never the weights.

A sharded model costs its config.json and its index when what follows from config.json agrees with the size that the
index states; else the headers of its files are read too, by ranges. A GGUF file costs its header, which holds the
tokenizer: a few MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from plimsoll.discover.hub_ref import HubRef, Kind, truthy
from plimsoll.discover.local import MAX_JSON_BYTES, first_parts, part_names
from plimsoll.errors import FactError
from plimsoll.facts.config import facts_from_config
from plimsoll.facts.gguf import GgufHeader, read_gguf
from plimsoll.facts.gguf_facts import model_facts
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.safetensors import SafetensorsHeader, read_index, read_safetensors

AGREEMENT = 0.002
"""How far the weights derived from config.json may lie from the index's total before the headers are read."""
MAX_HEADERS = 256
TIMEOUT_S = 15.0


@dataclass(slots=True, kw_only=True)
class Hub(AbstractContextManager["Hub"]):
    """One hub over HTTP; use it as a context. Tokens go to the hub's own host only."""

    kind: Kind
    endpoint: str
    token: str | None = None
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"user-agent": "plimsoll"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=True)

    @staticmethod
    def resolve(environ: Mapping[str, str], *, kind: Kind | None = None) -> Hub:
        """The hub that the environment chooses: HF_ENDPOINT and HF_TOKEN, or MODELSCOPE_ENDPOINT with its token."""
        chosen: Kind = kind or ("modelscope" if truthy(environ.get("VLLM_USE_MODELSCOPE")) else "huggingface")
        if chosen == "modelscope":
            address = environ.get("MODELSCOPE_ENDPOINT") or environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
            address = address if "://" in address else f"https://{address}"
            return Hub(kind=chosen, endpoint=address.rstrip("/"), token=environ.get("MODELSCOPE_API_TOKEN"))
        address = environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return Hub(kind=chosen, endpoint=address.rstrip("/"), token=_hf_token(environ))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def read_model(self, ref: HubRef) -> ModelFacts:
        """Facts of a model on the hub; FactError where it is not there, not allowed, or not understood."""
        if ref.file and ref.file.endswith(".gguf"):
            return self._gguf(ref, ref.file)
        config = None if ref.quant else self._json(ref, "config.json")
        if config is None or "model_type" not in config:
            return self._gguf(ref, self._choose_gguf(ref))
        return self._transformers(ref, config)

    def _transformers(self, ref: HubRef, config: Mapping[str, Any]) -> ModelFacts:
        quantization = self._json(ref, "hf_quant_config.json") if "quantization_config" not in config else None
        tokenizer = self._json(ref, "tokenizer_config.json")
        template = bool(tokenizer and tokenizer.get("chat_template")) or None

        def derive(headers: Sequence[SafetensorsHeader]) -> ModelFacts:
            return facts_from_config(
                config, id=ref.id, source=self.url(ref, "config.json"), quantization=quantization, headers=headers,
                chat_template=template,
            )  # fmt: skip

        index = self._get(ref, "model.safetensors.index.json")
        if index is None:
            size = self._size(ref, "model.safetensors")
            return derive(()) if size is None else derive((self._header(ref, "model.safetensors", size),))
        names, total = read_index(index, name=self.url(ref, "model.safetensors.index.json"))
        unread: FactError | None = None
        try:
            derived = derive(())
        except FactError as error:
            unread = error
        else:
            if total is not None and abs(derived.weight_bytes - total) <= AGREEMENT * total:
                return derived
        if len(names) > MAX_HEADERS:
            if unread is not None:
                raise unread
            return derived
        return derive([self._header(ref, name, self._size(ref, name) or 0) for name in names])

    def _header(self, ref: HubRef, name: str, size: int) -> SafetensorsHeader:
        return read_safetensors(lambda offset, length: self._range(ref, name, offset, length), size, name=name)

    def _gguf(self, ref: HubRef, file: str) -> ModelFacts:
        headers = []
        for name in part_names(file):
            size = self._size(ref, name)
            if size is None:
                raise FactError(
                    f"{self.url(ref, name)} is not there", hint="Name another file or type.", source=self.url(ref, name)
                )
            headers.append(self._gguf_header(ref, name, size))
        label = f"{ref.id}:{ref.quant}" if ref.quant else f"{ref.id}/{file}"
        return model_facts(headers, id=label, source=self.url(ref, file))

    def _gguf_header(self, ref: HubRef, name: str, size: int) -> GgufHeader:
        return read_gguf(lambda offset, length: self._range(ref, name, offset, length), size, name=name)

    def _choose_gguf(self, ref: HubRef) -> str:
        firsts = first_parts([name for name in self.list_files(ref) if name.endswith(".gguf")])
        wanted = [name for name in firsts if ref.quant is None or ref.quant.lower() in name.lower()]
        if len(wanted) == 1:
            return wanted[0]
        if not firsts:
            raise FactError(
                f"{ref.id} has neither a config.json nor a GGUF file", hint="Is it a model?", source=self.url(ref, "")
            )
        raise FactError(
            f"{ref.id} holds {len(firsts)} GGUF models, {len(wanted)} of them "
            f"{'of type ' + ref.quant if ref.quant else 'to choose from'}: {', '.join((wanted or firsts)[:8])}",
            hint=f"Name one: {ref.id}:Q4_K_M, or {ref.id}/FILE.",
            source=self.url(ref, ""),
        )

    def list_files(self, ref: HubRef) -> tuple[str, ...]:
        """The paths of all files of the model's revision."""
        revision = quote(self._revision(ref), safe="")
        if self.kind == "modelscope":
            url = f"{self.endpoint}/api/v1/models/{ref.id}/repo/files?Revision={revision}&Recursive=True"
            entries = _load(self._fetch(url) or b"{}", url).get("Data", {}).get("Files", [])
            return tuple(str(entry["Path"]) for entry in entries if entry.get("Type") != "tree")
        url = f"{self.endpoint}/api/models/{ref.id}/revision/{revision}"
        content = self._fetch(url)
        if content is None:
            raise FactError(
                f"{self.endpoint} has no model {ref.id}", hint="Check the name and the revision.", source=url
            )
        return tuple(str(entry["rfilename"]) for entry in _load(content, url).get("siblings", []))

    def url(self, ref: HubRef, name: str) -> str:
        """Where a file of the model lies."""
        revision, path = quote(self._revision(ref), safe=""), quote(name)
        if self.kind == "modelscope":
            return f"{self.endpoint}/models/{ref.id}/resolve/{revision}/{path}"
        return f"{self.endpoint}/{ref.id}/resolve/{revision}/{path}"

    def _revision(self, ref: HubRef) -> str:
        return ref.revision or ("master" if self.kind == "modelscope" else "main")

    def _json(self, ref: HubRef, name: str) -> dict[str, Any] | None:
        content = self._get(ref, name)
        return None if content is None else _load(content, self.url(ref, name))

    def _get(self, ref: HubRef, name: str) -> bytes | None:
        return self._fetch(self.url(ref, name))

    def _size(self, ref: HubRef, name: str) -> int | None:
        """Bytes of a file, None where it is not there: told by the answer to a request for its first byte."""
        url = self.url(ref, name)
        with self._stream(url, {"range": "bytes=0-0"}) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            self._check(answer, url)
            total = answer.headers.get("content-range", "").rpartition("/")[2]
            if answer.status_code == httpx.codes.PARTIAL_CONTENT and total.isdigit():
                return int(total)
            length = answer.headers.get("content-length", "")
            return int(length) if length.isdigit() else None

    def _range(self, ref: HubRef, name: str, offset: int, length: int) -> bytes:
        url = self.url(ref, name)
        with self._stream(url, {"range": f"bytes={offset}-{offset + length - 1}"}) as answer:
            self._check(answer, url)
            if answer.status_code != httpx.codes.PARTIAL_CONTENT and offset:
                raise FactError(f"{url} cannot be read in parts", hint="Fetch the model and name its file.", source=url)
            return self._body(answer, length, url)

    def _fetch(self, url: str) -> bytes | None:
        with self._stream(url, {}) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            self._check(answer, url)
            content = self._body(answer, MAX_JSON_BYTES + 1, url)
        if len(content) > MAX_JSON_BYTES:
            raise FactError(f"{url} is larger than {MAX_JSON_BYTES} bytes", source=url)
        return content

    def _stream(self, url: str, headers: Mapping[str, str]) -> _Answer:
        return _Answer(self._client, url, headers, self.endpoint)

    def _body(self, answer: httpx.Response, most: int, url: str) -> bytes:
        """The first `most` bytes: the rest of what an endless or careless server sends is not taken."""
        content = bytearray()
        try:
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) >= most:
                    break
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error
        return bytes(content[:most])

    def _check(self, answer: httpx.Response, url: str) -> None:
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            needed = "HF_TOKEN" if self.kind == "huggingface" else "MODELSCOPE_API_TOKEN"
            raise FactError(
                f"{self.endpoint} does not give out {url.removeprefix(self.endpoint)}: status {answer.status_code}",
                hint=f"It may be gated or private: accept its terms on its page and set {needed}; or check the name.",
                source=url,
            )
        if answer.is_error:
            raise FactError(f"{url} answered with status {answer.status_code}", hint="Try again later.", source=url)


class _Answer(AbstractContextManager[httpx.Response]):
    """A streamed GET whose failures to connect are FactErrors."""

    def __init__(self, client: httpx.Client, url: str, headers: Mapping[str, str], endpoint: str) -> None:
        self._stream = client.stream("GET", url, headers=dict(headers))
        self._url = url
        self._endpoint = endpoint

    def __enter__(self) -> httpx.Response:
        try:
            return self._stream.__enter__()
        except httpx.HTTPError as error:
            raise _unreachable(self._endpoint, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)


def _unreachable(url: str, error: httpx.HTTPError) -> FactError:
    return FactError(
        f"{url} cannot be reached: {error or type(error).__name__}",
        hint="Set HF_ENDPOINT to a mirror, or name a local directory or a model of the catalogue.",
        source=url,
    )


def _load(content: bytes, url: str) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise FactError(f"{url} is not JSON", hint="A proxy may have answered in its place.", source=url) from error
    if not isinstance(value, dict):
        raise FactError(f"{url} does not hold an object", source=url)
    return value


def _hf_token(environ: Mapping[str, str]) -> str | None:
    """A variable, else the file that the hub's own tools write."""
    named = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if named or truthy(environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return named or None
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    path = Path(environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
