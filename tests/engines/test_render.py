"""Forms of rendering: hostile values come back as they were, and every form is what its own validator takes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import yaml
from engine_kit import FOUR_NODES, PORTS, replica
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.engines.fastchat import FastChat
from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.engines.mindie import MindIE
from plimsoll.engines.ollama import Ollama
from plimsoll.engines.protocol import Ports, Process, Ready
from plimsoll.engines.render.forms import FORMS, render
from plimsoll.engines.render.kubernetes import group_addresses
from plimsoll.engines.render.placed import Placed
from plimsoll.engines.render.shell import command_line
from plimsoll.engines.sglang import SGLang
from plimsoll.engines.vllm import Vllm
from plimsoll.errors import PlanError

VLLM, SGLANG, OLLAMA, MINDIE = (kind(installed=True) for kind in (Vllm, SGLang, Ollama, MindIE))
LLAMACPP = LlamaCpp(command=("/app/llama-server",), version="b11549")
FLEET = {"tp": 8, "pp": 2, "nodes": 2, "gpu_names": ("card",) * 16}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "vllm": (VLLM, {"gpus": 4, "tp": 2, "draft_model": "/models/draft"}),
    "vllm_fleet": (VLLM, FLEET),
    "vllm_ray": (VLLM, {**FLEET, "options": {"distributed_executor_backend": "ray"}}),
    "sglang_fleet": (SGLANG, FLEET),
    "llamacpp_amd": (LLAMACPP, {"vendor": "amd", "gpus": 2}),
    "ollama": (OLLAMA, {"path": "qwen3:8b", "options": {"num_gpu": 9}}),
    "mindie": (MINDIE, {"vendor": "ascend", "gpus": 8, "tp": 8, "arch": "910B4"}),
    "fastchat": (FastChat(installed=True), {"options": {"web": True}}),
}
PLAIN = replica(VLLM)
IMAGE = {"fastchat": "registry.example/fastchat:0.2.36"}
hostile = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
traps = st.sampled_from(["$HOME", "$(POD_IP)", "${A:-b}", "%h", "a b", "';x", "$$", ";", "\\", "", "--x y"])
hostile_words = st.lists(hostile | traps, max_size=6)
hostile_env = st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,8}", fullmatch=True), hostile, max_size=3)


def placed(case: str, ports: Ports = PORTS) -> list[Placed]:
    engine, setup = CASES[case]
    made = replica(engine, **setup)
    processes = engine.processes(made, replace(ports, addresses=FOUR_NODES.addresses))
    return [Placed(replica=made, process=process, siblings=processes) for process in processes]


def one(argv: list[str], env: dict[str, str], **more: Any) -> list[Placed]:
    process = Process(name="server", argv=("/bin/true", *argv), env=env, port=8100, image="image", **more)
    return [Placed(replica=PLAIN, process=process, siblings=(process,))]


# --- nothing is lost -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(hostile_words, hostile_env)
def test_a_shell_reads_the_same_words(argv: list[str], env: dict[str, str]) -> None:
    (item,) = one(argv, env)
    words = shlex.split(command_line(item.process))
    assert words[-len(item.process.argv) :] == list(item.process.argv)
    assert set(words[1 : -len(item.process.argv)]) == {f"{key}={value}" for key, value in env.items()}


@settings(max_examples=15, deadline=None)
@given(hostile_words, hostile)
def test_bash_runs_the_same_words_and_writes_the_same_file(argv: list[str], text: str) -> None:
    program = "import sys, json; print(json.dumps([sys.argv[2:], open(sys.argv[1], 'rb').read().hex()]))"
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/it's $here/file"
        (item,) = one([], {"A": text}, files={path: text})
        shown = replace(item.process, argv=("python3", "-ISc", program, path, *argv))
        (script,) = render("shell", [replace(item, process=shown, siblings=(shown,))])
        done = subprocess.run(["bash", "-c", script.text], capture_output=True, check=True)
    assert json.loads(done.stdout) == [argv, text.encode().hex()]


@settings(deadline=None)
@given(hostile_words, hostile_env)
def test_tmux_hands_the_same_words_to_its_shell(argv: list[str], env: dict[str, str]) -> None:
    (script,) = render("tmux", items := one(argv, env))
    inner = shlex.split(script.text.partition("tmux ")[2])[6]
    assert inner == f"set -e; {command_line(items[0].process)}"


@settings(deadline=None)
@given(hostile_words, hostile_env)
def test_systemd_reads_the_same_words(argv: list[str], env: dict[str, str]) -> None:
    (unit,) = render("systemd", one(argv, env))
    text = unit.text.replace(" \\\n", " ")
    (command,) = (line.partition("=")[2] for line in text.split("\n") if line.startswith("ExecStart="))
    assert [word.replace("$$", "$") for word in systemd_words(command)] == ["/bin/true", *argv]
    given_env = [line.partition("=")[2] for line in text.split("\n") if line.startswith("Environment=")]
    assert [systemd_words(line) for line in given_env] == [[f"{key}={value}"] for key, value in sorted(env.items())]


def systemd_words(text: str) -> list[str]:
    """As systemd.syntax(7) has it: words in double quotes, C escapes, doubled per cents."""
    escapes = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", '"': '"', "\\": "\\"}

    def unescape(match: re.Match[str]) -> str:
        return chr(int(match[1][1:], 16)) if match[1][0] == "x" else escapes[match[1]]

    found = re.findall(r'"((?:[^"\\]|\\.)*)"|([^ "]+)', text)
    return [re.sub(r"\\(x[0-9a-f]{2}|.)", unescape, quoted or plain).replace("%%", "%") for quoted, plain in found]


@settings(max_examples=40, deadline=None)
@given(hostile_words, hostile_env)
def test_compose_reads_the_same_words(argv: list[str], env: dict[str, str]) -> None:
    (file,) = render("compose", one(argv, env))
    (service,) = yaml.safe_load(file.text)["services"].values()
    assert [interpolate(word) for word in (*service["entrypoint"], *service["command"])] == ["/bin/true", *argv]
    assert {key: interpolate(value) for key, value in service.get("environment", {}).items()} == env


def interpolate(text: str) -> str:
    """Compose's own, without any variable set: a single dollar must not be left."""
    assert not re.search(r"(?<!\$)\$(?:\$\$)*(?!\$)", text)
    return text.replace("$$", "$")


@settings(max_examples=40, deadline=None)
@given(hostile_words, hostile_env)
def test_kubernetes_reads_the_same_words(argv: list[str], env: dict[str, str]) -> None:
    (file,) = render("k8s", one(argv, env))
    container = next(yaml.safe_load_all(file.text))["spec"]["template"]["spec"]["containers"][0]
    assert [expand(word) for word in (*container["command"], *container["args"])] == ["/bin/true", *argv]
    assert {entry["name"]: expand(entry["value"]) for entry in container.get("env", ())} == env


def expand(text: str) -> str:
    """Kubernetes' own: `$$` is a dollar, `$(NAME)` a variable, of which none may be left."""
    assert not re.search(r"(?<!\$)(?:\$\$)*\$\(", text)
    return text.replace("$$", "$")


# --- every form is valid -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["shell", "docker", "tmux", "ray"])
def test_scripts_parse(case: str, form: Any) -> None:
    for script in render(form, placed(case), image=IMAGE.get(case)):
        assert script.executable
        subprocess.run(["bash", "-n"], input=script.text.encode(), check=True)


@pytest.mark.parametrize("case", CASES)
def test_compose_files_hold_against_the_schema(case: str) -> None:
    schema = package_files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))
    rendered = [file for file in render("compose", placed(case), image=IMAGE.get(case)) if file.path.endswith(".yaml")]
    assert len(rendered) == CASES[case][1].get("nodes", 1)
    for file in rendered:
        validator.validate(yaml.safe_load(file.text))


@pytest.mark.parametrize("case", [case for case in CASES if case != "vllm_ray"])
def test_manifests_hold_against_the_schemas_of_kubernetes(case: str) -> None:
    found = importlib.util.find_spec("kubernetes_validate")
    if found is None or not found.submodule_search_locations:
        pytest.skip("kubernetes-validate is not installed")
    root = Path(found.submodule_search_locations[0]) / "kubernetes-json-schema" / "v1.37.0-local-strict"
    definitions = referencing.Resource.from_contents(json.loads((root / "_definitions.json").read_text()))
    objects = manifest_objects(case)
    for item in objects:
        if item["kind"] == "LeaderWorkerSet":
            template = item["spec"]["leaderWorkerTemplate"]
            checks = [
                ("podtemplatespec-v1", template["leaderTemplate"]),
                ("podtemplatespec-v1", template["workerTemplate"]),
            ]
        else:
            api = item["apiVersion"].replace("/", "-")
            checks = [(f"{item['kind'].lower()}-{api}", item)]
        for name, value in checks:
            schema = referencing.Resource.from_contents(json.loads((root / f"{name}.json").read_text()))
            registry = definitions @ (schema @ referencing.Registry())
            jsonschema.Draft202012Validator(schema.contents, registry=registry).validate(value)


def manifest_objects(case: str) -> list[dict[str, Any]]:
    engine, setup = CASES[case]
    made = replica(engine, **setup)
    ports = replace(PORTS, host="0.0.0.0", addresses=group_addresses(made))
    processes = engine.processes(made, ports)
    items = [Placed(replica=made, process=process, siblings=processes) for process in processes]
    (file,) = render("k8s", items, image=IMAGE.get(case))
    return list(yaml.safe_load_all(file.text))


def test_workers_of_a_fleet_share_a_template_that_fits_each() -> None:
    sets = [item for item in manifest_objects("vllm_fleet") if item["kind"] == "LeaderWorkerSet"]
    template = sets[0]["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[part]["spec"]["containers"][0] for part in ("leaderTemplate", "workerTemplate"))
    assert template["size"] == 2
    assert leader["args"][leader["args"].index("--node-rank") + 1] == "0"
    assert worker["args"][worker["args"].index("--node-rank") + 1] == "$(LWS_WORKER_INDEX)"
    assert worker["args"][worker["args"].index("--master-addr") + 1] == "served-1-0.served-1"
    own = {entry["name"]: entry for entry in worker["env"]}["VLLM_HOST_IP"]
    assert own["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "8"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_are_taken_by_systemd(tmp_path: Path) -> None:
    for case in CASES:
        items = placed(case)
        # It looks for the programs, which need not be here.
        here = [
            replace(item.process, argv=("/bin/true", *item.process.argv[1:]), setup=(), once_up=()) for item in items
        ]
        units = render("systemd", [replace(item, process=process, siblings=tuple(here)) for item, process in
                                   zip(items, here, strict=True)])  # fmt: skip
        for unit in units:
            path = tmp_path / case / unit.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(unit.text)
    paths = sorted(str(path) for path in tmp_path.rglob("*.service"))
    assert len(paths) > len(CASES)
    for group in {str(Path(path).parent) for path in paths}:
        own = [path for path in paths if str(Path(path).parent) == group]
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *own], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not [line for line in done.stderr.splitlines() if group in line], done.stderr


_SHOWN = "CUDA_VISIBLE_DEVICES"


def test_a_container_has_the_devices_and_counts_them_from_zero() -> None:
    made = placed("vllm")
    (item,) = [
        replace(one, process=replace(one.process, env={"CUDA_VISIBLE_DEVICES": "3,1", "A": "b"})) for one in made
    ]
    (script,) = render("docker", [item])
    assert "--gpus '\"device=3,1\"'" in script.text
    assert "CUDA_VISIBLE_DEVICES" not in script.text and "--env A=b" in script.text
    assert (
        "--volume /models/it:/models/it:ro" in script.text and "--volume /models/draft:/models/draft:ro" in script.text
    )


def test_docker_runs_the_command(tmp_path: Path) -> None:
    shim = tmp_path / "docker"
    shim.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    shim.chmod(0o755)
    (script,) = render("docker", items := placed("vllm"))
    done = subprocess.run(["bash", "-c", script.text], capture_output=True, check=True, cwd=tmp_path,
                          env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/h"})  # fmt: skip
    words = done.stdout.decode().split("\0")[:-1]
    image = words.index(items[0].process.image)
    assert words[image - 1 : image + 1] == ["vllm", items[0].process.image]
    assert words[image + 1 :] == list(items[0].process.argv[1:])


@pytest.mark.parametrize("form", ["docker", "compose", "k8s"])
def test_without_an_image_a_container_is_refused(form: Any) -> None:
    with pytest.raises(PlanError, match="no image is published"):
        render(form, placed("fastchat"))


def test_a_script_starts_in_order_and_ends_together(tmp_path: Path) -> None:
    """The server, then what needs it up, then the process that waits for it; the end of one is the end of all."""
    with_port = {"port": 18231, "ready": Ready(health_path="/")}
    server = Process(name="server", argv=("python3", "-m", "http.server", "18231", "--bind", "127.0.0.1"),
                     once_up=(("touch", "created"),), **with_port)  # fmt: skip
    last = Process(name="last", argv=("sh", "-c", "test -f created && touch ended"), after=("server",))
    both = (server, last)
    items = [Placed(replica=replica(VLLM), process=process, siblings=both) for process in both]
    (script,) = render("shell", items)
    subprocess.run(["bash", "-c", script.text], check=True, cwd=tmp_path, timeout=20, capture_output=True)
    assert (tmp_path / "ended").exists()
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["curl", "--silent", "http://127.0.0.1:18231/"], check=True)


def test_every_form_is_known() -> None:
    for form in FORMS:
        assert render(form, placed("vllm"))
