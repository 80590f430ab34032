"""The forms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

from plimsoll.engines.render.docker import compose_files, docker_scripts
from plimsoll.engines.render.kubernetes import manifests
from plimsoll.engines.render.placed import Placed, RenderedFile
from plimsoll.engines.render.shell import shell_scripts, tmux_scripts
from plimsoll.engines.render.systemd import systemd_units

Form = Literal["shell", "docker", "compose", "systemd", "tmux", "ray", "k8s"]
FORMS: tuple[Form, ...] = get_args(Form)
CONTAINERS: frozenset[Form] = frozenset({"docker", "compose", "k8s"})
"""Forms in which the engine comes with an image: what is installed here does not matter."""


def render(form: Form, placed: Sequence[Placed], *, image: str | None = None) -> tuple[RenderedFile, ...]:
    """All files of `form` for the processes; PlanError where it cannot hold them.

    `image`: a container image in place of the published one.
    """
    made: Mapping[Form, Callable[[Sequence[Placed]], tuple[RenderedFile, ...]]] = {
        "shell": shell_scripts,
        "docker": partial(docker_scripts, image=image),
        "compose": partial(compose_files, image=image),
        "systemd": systemd_units,
        "tmux": tmux_scripts,
        "ray": partial(shell_scripts, stem="ray"),
        "k8s": partial(manifests, image=image),
    }
    return made[form](placed)
