"""A stand-in for Ollama, not Ollama: `serve`, `create` and `pull`, as strict as the real one on what it is told.

From its sources (`parser/parser.go`, `api/types.go`, `server/create.go`, `types/model/name.go`, `envconfig/config.go`,
main of 2026): the Modelfile's commands and parameters, their types and the words of refusal; the client's way of
creating a model (blob, then manifest); a model that is loaded by its first request; a quantised cache that needs flash
attention. Where the real one ignores what it does not know (variables, fields of a request), this one refuses it, and
says that it is the stand-in that does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from stand_in_http import Json, RefusedError, Server, answer_to, only, serve

VERSION = "0.33.0"
REGISTRY = {"stand-in-tiny"}
"""What can be pulled."""
VARIABLES = {
    "OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_NUM_PARALLEL", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_KEEP_ALIVE", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION", "OLLAMA_SCHED_SPREAD", "OLLAMA_MAX_QUEUE",
    "OLLAMA_GPU_OVERHEAD", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_DEBUG",
}  # fmt: skip
INTS = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed",
        "num_predict", "top_k", "repeat_last_n"}  # fmt: skip
FLOATS = {"top_p", "min_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
DEPRECATED = {"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat",
              "mirostat_tau", "mirostat_eta"}  # fmt: skip
COMMANDS = ("from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
            "requires")  # fmt: skip
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


class ModelfileError(Exception):
    """What `ollama create` prints after `Error: `."""


def parse_modelfile(text: str) -> Json:
    """Its commands, as a request to create: from, draft, parameters and texts; ModelfileError in Ollama's words."""
    found: Json = {"parameters": {}}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command, _, rest = line.strip().partition(" ")
        if command.lower() not in COMMANDS:
            listed = ", ".join(f'"{one}"' for one in COMMANDS[:-1])
            raise ModelfileError(f'(line {number}): command must be one of {listed}, or "{COMMANDS[-1]}"')
        if command.lower() == "parameter":
            name, _, value = rest.strip().partition(" ")
            if name in DEPRECATED:
                print(f"warning: parameter {name} is deprecated")
                continue
            value = _parameter(name, value.strip().strip('"'))
            found["parameters"][name] = [*found["parameters"].get(name, []), value] if name == "stop" else value
        else:
            found[command.lower()] = rest.strip().strip('"')
    if "from" not in found:
        raise ModelfileError("no FROM line")
    return found


def _parameter(name: str, value: str) -> object:
    try:
        if name in INTS:
            return int(value)
        if name in FLOATS:
            return float(value)
    except ValueError:
        raise ModelfileError(f"invalid {'int' if name in INTS else 'float'} value [{value}]") from None
    if name == "use_mmap":
        if value.lower() not in _BOOLEANS:
            raise ModelfileError(f"invalid bool value [{value}]")
        return _BOOLEANS[value.lower()]
    if name == "stop":
        return value
    raise ModelfileError(f"unknown parameter '{name}'")


def is_name(name: str) -> bool:
    """Whether it is `[host/][namespace/]model[:tag]`."""
    path, _, tag = name.partition(":")
    parts = path.split("/")
    return len(parts) <= 3 and all(_PART.fullmatch(part) for part in (*parts, *([tag] if ":" in name else [])))


class Ollama:
    """The server: its settings, its store of models, and the one that is loaded."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.store = Path(env.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
        for kind in ("blobs", "manifests"):
            (self.store / kind).mkdir(parents=True, exist_ok=True)
        self.loaded: str | None = None
        self.slots = int(env.get("OLLAMA_NUM_PARALLEL", "1"))
        self.context = int(env.get("OLLAMA_CONTEXT_LENGTH", "4096"))
        self.routes = {
            "GET /": lambda body: {"text": "Ollama is running"},
            "GET /api/version": lambda body: {"version": VERSION},
            "GET /api/tags": lambda body: {"models": [{"name": name} for name in self.names()]},
            "GET /api/ps": lambda body: {"models": [{"name": self.loaded}] if self.loaded else []},
            "GET /v1/models": lambda body: {"object": "list", "data": [{"id": name} for name in self.names()]},
            "POST /api/blobs": self.blob,
            "POST /api/create": self.create,
            "POST /api/pull": self.pull,
            "POST /api/generate": self.generate,
            "POST /api/embed": self.embed,
            "POST /v1/chat/completions": lambda body: self.openai(body, "chat.completion", "messages"),
            "POST /v1/completions": lambda body: self.openai(body, "text_completion", "prompt"),
        }

    def names(self) -> list[str]:
        return sorted(path.name.replace("%", "/") for path in (self.store / "manifests").iterdir())

    def manifest(self, name: str) -> Path:
        return self.store / "manifests" / (name if ":" in name else f"{name}:latest").replace("/", "%")

    def blob(self, body: Json) -> Json:
        """Ours alone: the real one takes the bytes; this one is told where they lie."""
        data = Path(body["path"]).read_bytes()
        (self.store / "blobs" / body["digest"].replace(":", "-")).write_bytes(data)
        return {}

    def create(self, body: Json) -> list[Json]:
        only(body, ("model", "from", "files", "draft_files", "parameters", "template", "system", "stream"), "field")
        if not is_name(body["model"]):
            raise RefusedError(400, {"error": "invalid model name"})
        for name, digest in {**body.get("files", {}), **body.get("draft_files", {})}.items():
            head = (self.store / "blobs" / digest.replace(":", "-")).read_bytes()[:4]
            if head != b"GGUF":
                error = "supplied file was not in GGUF format" if name.endswith(".gguf") else "unknown type"
                return [{"error": error, "status": 400}]
        if "from" in body and not self.manifest(body["from"]).exists():
            pulled = self.pull({"model": body["from"]})
            if "error" in pulled[-1]:
                return pulled
        elif "from" not in body and not body.get("files"):
            return [{"error": "neither 'from' or 'files' was specified", "status": 400}]
        self.manifest(body["model"]).write_text(json.dumps(body))
        return [{"status": "writing manifest"}, {"status": "success"}]

    def pull(self, body: Json) -> list[Json]:
        only(body, ("model", "stream"), "field")
        if body["model"] not in REGISTRY:
            return [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
        self.manifest(body["model"]).write_text("{}")
        return [{"status": "pulling manifest"}, {"status": "success"}]

    def load(self, name: str, options: Json) -> str:
        """What the first request does: the model's own parameters, then the request's."""
        manifest = self.manifest(name)
        if not manifest.exists():
            raise RefusedError(404, {"error": f"model '{name}' not found"})
        only(options, (*INTS, *FLOATS, "stop", "use_mmap"), "option")
        for key, value in options.items():
            if key in INTS and not isinstance(value, int):
                raise RefusedError(400, {"error": f'option "{key}" must be of type integer'})
        if self.loaded != manifest.name:
            parameters = json.loads(manifest.read_text()).get("parameters", {})
            kind = self.env.get("OLLAMA_KV_CACHE_TYPE", "f16")
            if kind not in ("f16", "q8_0", "q4_0"):
                raise RefusedError(500, {"error": f"llama-server: unsupported cache type: {kind}"})
            if kind != "f16" and self.env.get("OLLAMA_FLASH_ATTENTION") == "0":
                raise RefusedError(500, {"error": "llama-server: quantized V cache requires flash_attn to be enabled"})
            context = parameters.get("num_ctx", self.context) * self.slots
            print(
                f"stand-in: llama-server -c {context} -np {self.slots} -ngl {parameters.get('num_gpu', -1)} -ctk {kind}"
            )
            print('level=INFO msg="llama-server started in 0.01 seconds"', flush=True)
            self.loaded = manifest.name
        return name

    def generate(self, body: Json) -> Json:
        only(body, ("model", "prompt", "stream", "options", "keep_alive"), "field")
        model = self.load(body["model"], body.get("options", {}))
        return {"model": model, "response": "yes", "done": True, "done_reason": "length", "eval_count": 1}

    def embed(self, body: Json) -> Json:
        only(body, ("model", "input", "options", "keep_alive", "truncate"), "field")
        return {"model": self.load(body["model"], body.get("options", {})), "embeddings": [[0.6, 0.8]]}

    def openai(self, body: Json, kind: str, prompt: str) -> Json | list[Json]:
        only(body, ("model", prompt, "stream", "max_tokens", "temperature", "seed", "stop", "stream_options"), "field")
        try:
            return answer_to(body, self.load(body["model"], {}), kind)
        except RefusedError as refused:
            error = {"message": refused.body["error"], "type": "api_error", "param": None, "code": None}
            raise RefusedError(refused.status, {"error": error}) from None


def _serve(env: dict[str, str]) -> None:
    if unknown := sorted({name for name in env if name.startswith("OLLAMA_")} - VARIABLES):
        sys.exit(f"Error: stand-in: unknown variable {', '.join(unknown)}")
    host, _, port = env.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    ollama = Ollama(env)
    try:
        server = Server((host, int(port)), ollama.routes)
    except OSError:
        sys.exit(f"Error: listen tcp {host}:{port}: bind: address already in use")
    print(f'level=INFO msg="Listening on {host}:{port} (version {VERSION})"', flush=True)
    serve([server])


def _client(env: dict[str, str], path: str, body: Json) -> list[Json]:
    request = urllib.request.Request(
        f"http://{env['OLLAMA_HOST']}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            lines: list[Json] = [json.loads(line) for line in response.read().splitlines()]
    except urllib.error.HTTPError as error:
        with error:
            lines = [json.loads(error.read())]
    for line in lines:
        if "error" in line:
            sys.exit(f"Error: {line['error']}")
        print(line.get("status", ""))
    return lines


def _create(env: dict[str, str], name: str, path: Path) -> None:
    try:
        parsed = parse_modelfile(path.read_text())
    except ModelfileError as error:
        sys.exit(f"Error: {error}")
    body: Json = {"model": name, "parameters": parsed["parameters"]}
    body |= {key: parsed[key] for key in ("template", "system") if key in parsed}
    for key, field in (("from", "files"), ("draft", "draft_files")):
        source = Path(parsed.get(key, ""))
        if key in parsed and source.is_file():
            digest = f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
            _client(env, "/api/blobs", {"digest": digest, "path": str(source)})
            body[field] = {source.name: digest}
        elif key == "from":
            body["from"] = parsed["from"]
        elif key in parsed:
            sys.exit(f"Error: stat {source}: no such file or directory")
    _client(env, "/api/create", body)


def main(argv: list[str]) -> Any:
    """`serve`, `create NAME -f MODELFILE` or `pull NAME`."""
    env = dict(os.environ)
    match argv:
        case ["serve"]:
            return _serve(env)
        case ["create", name, "-f", path]:
            return _create(env, name, Path(path))
        case ["pull", name]:
            return _client(env, "/api/pull", {"model": name})
    return sys.exit(f"Error: unknown command {argv}")


if __name__ == "__main__":
    main(sys.argv[1:])
