"""A plan's processes in the forms that people run things in: shell, docker, compose, systemd, tmux, Ray, Kubernetes.

    forms.py        the forms by name; render(form, placed) -> files
    placed.py       a process with the replica that it belongs to; what all forms ask of it
    shell.py        scripts, one for each node; also for Ray's cluster and for tmux
    docker.py       docker run, and compose files
    systemd.py      units
    kubernetes.py   Deployment and Service; LeaderWorkerSet over several nodes

All are pure: processes in, text out. Every value is quoted for the language that it goes into.
"""
