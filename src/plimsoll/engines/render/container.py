"""What every container form needs: the image, the devices, the directories that are shared with the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from plimsoll.engines.devices import HIDDEN_IN_CONTAINERS, VARIABLES, node_devices, on_cpu
from plimsoll.engines.render.placed import Placed
from plimsoll.errors import PlanError
from plimsoll.facts.hardware import Vendor

HUB_CACHE = "/root/.cache/huggingface"
_ASCEND_DEVICES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
ASCEND_MOUNTS = (
    "/usr/local/dcmi", "/usr/local/bin/npu-smi", "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
)  # fmt: skip
"""What CANN in a container needs of the host's driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One process as a container."""

    image: str
    env: Mapping[str, str]
    vendor: Vendor
    devices: tuple[int, ...]
    """Indices on the host; empty: none."""
    device_files: tuple[str, ...]
    mounts: tuple[str, ...]
    """Directories and files of the host that it sees under the same path, read only."""
    hub: bool
    """Whether it fetches the model from a hub, and so wants the host's cache of it."""


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which people who edit a manifest trip over."""

    def ignore_aliases(self, data: Any) -> bool:
        """Every value is written where it stands."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Line ends that are not LF are lost but in double quotes."""
    style = '"' if any(end in text for end in "\r\x85\u2028\u2029\ufeff") else None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


_Dumper.add_representer(str, _text)


def dump_yaml(*documents: Mapping[str, Any]) -> str:
    """One or several documents, keys in their order."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def container_of(one: Placed, *, image: str | None) -> Container:
    """The container of a process; PlanError where nobody publishes an image and none is given."""
    process, candidate = one.process, one.replica.candidate
    chosen = image or process.image
    if not chosen:
        raise PlanError(
            f"{one.replica.name}: no image is published that has {process.argv[0]}",
            hint="name one that you have built: --image NAME",
        )
    vendor = candidate.devices[0].vendor
    indices: tuple[int, ...] = ()
    if not on_cpu(candidate):
        shown = process.env.get(VARIABLES.get(vendor, ""), "")
        used = tuple(device.index for device in node_devices(candidate, process.node))
        indices = tuple(int(word) for word in shown.split(",")) if shown else used
    env = {name: value for name, value in process.env.items() if name not in HIDDEN_IN_CONTAINERS}
    weights = [path for path in (one.replica.model_path, candidate.deployment.draft_model) if path]
    files: tuple[str, ...] = ()
    if vendor == "ascend":
        files = (*(f"/dev/davinci{index}" for index in indices), *_ASCEND_DEVICES)
    elif vendor == "amd":
        files = ("/dev/kfd", "/dev/dri")
    elif vendor == "intel":
        files = ("/dev/dri",)
    return Container(
        image=chosen,
        env=dict(sorted(env.items())),
        vendor=vendor,
        devices=indices,
        device_files=files,
        mounts=(
            *(path for path in weights if path.startswith("/")),
            *(ASCEND_MOUNTS if vendor == "ascend" else ()),
        ),
        hub=any(not path.startswith("/") for path in weights),
    )
