"""Several machines: which engines can, ranks per node, addresses, network interfaces, RPC servers and backends."""

from __future__ import annotations

from collections import Counter

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_MAX_BACKENDS = 16
"""GGML_SCHED_MAX_BACKENDS, a constant of the build: devices of all kinds and the CPU."""


@rule(
    "ollama.engine_is_single_node",
    cause="Ollama gives local devices to llama-server and has no option for remote ones",
    source="ollama fb30760: llm/llama_server.go:368",
    fires={"engine": "ollama", "nodes": 2, "format": "gguf"},
    passes={"engine": "ollama", "nodes": 1, "format": "gguf"},
)
@rule(
    "transformers.engine_is_single_node",
    cause="one process on one machine",
    source="transformers 5.23.0: transformers/cli/serve.py",
    fires={"engine": "transformers", "nodes": 2},
    passes={"engine": "transformers", "nodes": 1},
)
@rule(
    "fastchat.engine_is_single_node",
    cause="a worker is one process on one machine; several workers serve copies, not parts",
    source="fastchat 0.2.36: fastchat/serve/model_worker.py",
    fires={"engine": "fastchat", "nodes": 2},
    passes={"engine": "fastchat", "nodes": 1},
)
@rule(
    "openvino.engine_is_single_node",
    cause="the pipeline runs in one process",
    source="openvino-genai: LLMPipeline",
    fires={"engine": "openvino", "nodes": 2, "vendor": "cpu"},
    passes={"engine": "openvino", "nodes": 1, "vendor": "cpu"},
)
def engine_is_single_node(case: Case) -> Fault | None:
    """Several machines for one replica of an engine that knows one."""
    if case.nodes <= 1:
        return None
    return Fault(
        what=f"{case.nodes} machines for one replica, and {case.engine} runs on one",
        fix="llama.cpp with RPC servers, vLLM or SGLang; or one replica per machine",
        mend=(("engine", "llamacpp" if case.gguf else "vllm"),),
    )


@rule(
    "llamacpp.too_many_backends",
    cause="16 backends is a constant of the build, the CPU counts too, and a server with 8 cards counts 8",
    source="llama.cpp b11434: ggml/src/ggml-backend.cpp:904,2012; ggml-org/llama.cpp#9426, #11433, #12967",
    fires={"engine": "llamacpp", "gpus": 8, "options": {"rpc": ",".join(f"10.0.0.2:{50052 + i}" for i in range(8))}},
    passes={"engine": "llamacpp", "gpus": 8, "options": {"rpc": ",".join(f"10.0.0.2:{50052 + i}" for i in range(7))}},
)
@rule(
    "ollama.too_many_backends",
    cause="16 backends is a constant of the bundled llama.cpp, and the CPU counts too",
    source="ollama/ollama#8920, #10705",
    fires={"engine": "ollama", "gpus": 16, "format": "gguf"},
    passes={"engine": "ollama", "gpus": 15, "format": "gguf"},
)
def too_many_backends(case: Case) -> Fault | None:
    """More devices, local and remote, than llama.cpp can schedule."""
    local = 0 if case.vendor == "cpu" else len(case.devices)
    remote = remote_devices(case)
    if local + remote + 1 <= _MAX_BACKENDS:
        return None
    return Fault(
        what=f"{local} local and {remote} remote devices and the CPU are {local + remote + 1} backends; 16 is the most",
        fix=f"expose at most {_MAX_BACKENDS - 1} devices in all (ggml-rpc-server --device, CUDA_VISIBLE_DEVICES), or "
        "build with -DGGML_SCHED_MAX_BACKENDS=N",
    )


def remote_devices(case: Case) -> int:
    """Devices behind the RPC servers: one each in old builds, all of the server's machine in new ones."""
    servers = [part for part in case.text("rpc").split(",") if part.strip()]
    told = case.number("rpc_devices")
    if told is not None:
        return int(told)
    hosts = Counter(server.rpartition(":")[0] for server in servers)
    if case.since("<6690") or not servers or case.nodes <= 1:
        return len(servers)
    # A lone server on a machine like this one shows all of its cards.
    each = max(1, len(case.candidate.host.devices))
    return sum(each if count == 1 else count for count in hosts.values())


@rule(
    "llamacpp.one_rpc_server_uses_one_device",
    versions="<6690",
    severity="warning",
    cause="rpc-server served one device per process until October 2025",
    source="ggml-org/llama.cpp#15210 (b6084), #16276; a field note (0.24 tokens/s with one server per 8 cards)",
    fires={"engine": "llamacpp", "version": "b4700", "gpus": 8,
           "options": {"rpc": "10.0.0.2:50052,10.0.0.3:50052"}},
    passes={"engine": "llamacpp", "version": "b4700", "gpus": 1, "options": {"rpc": "10.0.0.2:50052"}},
)  # fmt: skip
def one_rpc_server_uses_one_device(case: Case) -> Fault | None:
    """One RPC server on a machine with several cards."""
    servers = [part for part in case.text("rpc").split(",") if part.strip()]
    hosts = Counter(server.rpartition(":")[0] for server in servers)
    if not servers or len(case.candidate.host.devices) <= 1 or min(hosts.values()) > 1:
        return None
    return Fault(
        what="one rpc-server per machine uses that machine's first card only",
        fix="a newer llama.cpp, whose server exposes all cards, or one server per card, each with its own port",
    )


@rule(
    "llamacpp.rpc_loads_over_network",
    severity="info",
    cause="weights of remote layers are sent at every start unless the server keeps a cache",
    source="llama.cpp b11434: tools/rpc/README.md:86; a field note (30 minutes)",
    fires={"engine": "llamacpp", "options": {"rpc": "10.0.0.2:50052"}},
    passes={"engine": "llamacpp", "options": {}},
)
def rpc_loads_over_network(case: Case) -> Fault | None:
    """Weights go over the network at every start."""
    if not case.text("rpc"):
        return None
    return Fault(what="remote layers are sent over the network at every start", fix="ggml-rpc-server -c keeps them")


@rule(
    "llamacpp.rpc_is_open",
    severity="warning",
    cause="RPC servers know neither keys nor encryption",
    source="llama.cpp b11434: tools/rpc/README.md:5",
    fires={"engine": "llamacpp", "options": {"rpc": "10.0.0.2:50052"}},
    passes={"engine": "llamacpp", "options": {"rpc": "127.0.0.1:50052"}},
)
def rpc_is_open(case: Case) -> Fault | None:
    """RPC servers on the network."""
    servers = [part for part in case.text("rpc").split(",") if part.strip()]
    if all(server.startswith(("127.", "localhost")) for server in servers):
        return None
    return Fault(what="whoever reaches an RPC server can use it", fix="a private network, or an SSH tunnel")


@rule(
    "llamacpp.local_devices",
    cause="the CUDA backend counts 16 devices at most",
    source="llama.cpp b11434: ggml/src/ggml-cuda/ggml-cuda.cu:230",
    fires={"engine": "llamacpp", "gpus": 17},
    passes={"engine": "llamacpp", "gpus": 15},
)
def local_devices(case: Case) -> Fault | None:
    """More than 16 CUDA devices in one machine."""
    if case.vendor != "nvidia" or len(case.devices) <= 16:
        return None
    return Fault(what=f"{len(case.devices)} CUDA devices", fix="CUDA_VISIBLE_DEVICES with at most 15")


@rule(
    "vllm.nodes_do_not_divide",
    versions=">=0.27.0",
    cause="each node runs the same number of ranks",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:2409",
    fires={"tp": 4, "gpus": 4, "heads": 32, "nodes": 3, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
    passes={"tp": 4, "gpus": 4, "heads": 32, "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
)
@rule(
    "sglang.nodes_do_not_divide",
    cause="each node runs the same number of ranks",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:180",
    fires={"engine": "sglang", "tp": 4, "gpus": 4, "nodes": 3, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
    passes={"engine": "sglang", "tp": 4, "gpus": 4, "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
)
def nodes_do_not_divide(case: Case) -> Fault | None:
    """The ranks do not divide by the nodes."""
    nodes = int(case.number("nnodes") or case.nodes)
    ranks = case.tp * case.pp * (case.dp if case.engine != "sglang" else 1)
    if nodes <= 1 or ranks % nodes == 0:
        return None
    return Fault(what=f"{ranks} ranks on {nodes} nodes", fix="a number of nodes that divides the ranks")


@rule(
    "vllm.node_rank",
    versions=">=0.27.0",
    cause="nodes count from 0",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:2416",
    fires={"tp": 2, "options": {"nnodes": 2, "node_rank": 2}},
    passes={"tp": 2, "options": {"nnodes": 2, "node_rank": 1}},
)
@rule(
    "sglang.node_rank",
    cause="nodes count from 0",
    source="sglang 0.5.23: sglang/srt/arg_groups/fields/parallel.py:44",
    fires={"engine": "sglang", "tp": 2, "options": {"nnodes": 2, "node_rank": 2, "dist_init_addr": "a:1"}},
    passes={"engine": "sglang", "tp": 2, "options": {"nnodes": 2, "node_rank": 0, "dist_init_addr": "a:1"}},
)
def node_rank(case: Case) -> Fault | None:
    """--node-rank is not below --nnodes."""
    nodes, rank = case.number("nnodes"), case.number("node_rank")
    if nodes is None or rank is None or nodes <= 1 or 0 <= rank < nodes:
        return None
    return Fault(what=f"--node-rank {rank:.0f} of {nodes:.0f}", fix=f"0 to {nodes - 1:.0f}")


@rule(
    "sglang.replicas_on_several_nodes",
    versions=">=0.5.22",
    cause="data-parallel replicas live on one node",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:200",
    fires={"engine": "sglang", "dp": 2, "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
    passes={"engine": "sglang", "dp": 2, "nodes": 1},
)
def replicas_on_several_nodes(case: Case) -> Fault | None:
    """Data-parallel replicas over several nodes."""
    if case.dp <= 1 or case.nodes <= 1:
        return None
    return Fault(
        what=f"data-parallel size {case.dp} over {case.nodes} nodes",
        fix="replicas in the spec (one server per node), or --attn-dp-size",
        mend=(("parallel.data", None), ("replicas", case.dp)),
    )


@rule(
    "sglang.rendezvous_missing",
    cause="--dist-init-addr has no default: each node would wait for itself",
    source="sglang 0.5.23: sglang/srt/server_args.py:825",
    fires={"engine": "sglang", "tp": 2, "options": {"nnodes": 2, "node_rank": 0}},
    passes={"engine": "sglang", "tp": 2, "options": {"nnodes": 2, "node_rank": 0, "dist_init_addr": "10.0.0.1:20000"}},
)
def rendezvous_missing(case: Case) -> Fault | None:
    """--nnodes without --dist-init-addr."""
    if (case.number("nnodes") or 1) <= 1 or case.text("dist_init_addr"):
        return None
    return Fault(
        what="--nnodes without --dist-init-addr", fix="--dist-init-addr HOST:PORT of the first node, on all nodes"
    )


@rule(
    "vllm.rendezvous_missing",
    versions=">=0.11.1",
    cause="--master-addr is 127.0.0.1 by default: each node would wait for itself",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:1175",
    fires={"tp": 2, "options": {"nnodes": 2, "node_rank": 0}},
    passes={"tp": 2, "options": {"nnodes": 2, "node_rank": 0, "master_addr": "10.0.0.1"}},
)
def master_missing(case: Case) -> Fault | None:
    """--nnodes without --master-addr."""
    if (case.number("nnodes") or 1) <= 1 or case.text("master_addr") not in ("", "127.0.0.1", "localhost"):
        return None
    return Fault(
        what="--nnodes without the address of the first node",
        fix="--master-addr of the first node, on all nodes",
        severity="warning",
    )


@rule(
    "vllm.network_interface",
    severity="warning",
    cause="Gloo picks the interface of the host's name, often loopback or docker0, and then waits for ever",
    source="vllm 0.33.0: docs/usage/troubleshooting.md:76; vllm-project/vllm#7074",
    fires={"tp": 2, "nodes": 2},
    passes={"tp": 2, "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
)
@rule(
    "sglang.network_interface",
    severity="warning",
    cause="Gloo picks the interface of the host's name, often loopback or docker0, and then waits for ever",
    source="sgl-project/sglang#3226; a field note (bond0)",
    fires={"engine": "sglang", "tp": 2, "nodes": 2},
    passes={"engine": "sglang", "tp": 2, "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "bond0"}},
)
@rule(
    "mindie.network_interface",
    severity="warning",
    cause="Gloo and HCCL pick an interface by themselves, and not always the cluster's",
    source="MindIE-LLM 8b4871a: docs/zh/faq/faq.md:896",
    fires={"engine": "mindie", "vendor": "ascend", "nodes": 2},
    passes={"engine": "mindie", "vendor": "ascend", "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
)
def network_interface(case: Case) -> Fault | None:
    """Several nodes and no network interface named."""
    if case.nodes <= 1 or case.env.get("GLOO_SOCKET_IFNAME"):
        return None
    also = "HCCL_SOCKET_IFNAME" if case.vendor == "ascend" else "NCCL_SOCKET_IFNAME"
    return Fault(
        what="which network interface joins the nodes is not said",
        fix=f"GLOO_SOCKET_IFNAME and {also} in env, on every node",
    )


@rule(
    "mindie.rank_table",
    cause="several nodes take their ranks and addresses from a table",
    source="MindIE-LLM 8b4871a: src/config_manager/ranktable_config.cpp:37",
    fires={"engine": "mindie", "vendor": "ascend", "nodes": 2, "env": {"GLOO_SOCKET_IFNAME": "eth0"}},
    passes={"engine": "mindie", "vendor": "ascend", "nodes": 2,
            "env": {"GLOO_SOCKET_IFNAME": "eth0", "RANK_TABLE_FILE": "/r.json", "MIES_CONTAINER_IP": "10.0.0.1"}},
)  # fmt: skip
def rank_table(case: Case) -> Fault | None:
    """Several nodes without RANK_TABLE_FILE."""
    if case.nodes <= 1 or (case.env.get("RANK_TABLE_FILE") and case.env.get("MIES_CONTAINER_IP")):
        return None
    return Fault(what="RANK_TABLE_FILE or MIES_CONTAINER_IP is not set", fix="set both in env, on every node")


@rule(
    "vllm.mixed_devices",
    versions=">=0.5.5",
    severity="warning",
    cause="CUDA counts the fastest device first, CUDA_VISIBLE_DEVICES then means other cards than nvidia-smi shows",
    source="vllm 0.33.0: vllm/platforms/cuda.py:999",
    fires={"tp": 2, "gpu_names": ("RTX 4090", "RTX 3090")},
    passes={"tp": 2, "gpu_names": ("RTX 4090", "RTX 3090"), "env": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}},
)
def mixed_devices(case: Case) -> Fault | None:
    """Devices of several kinds without CUDA_DEVICE_ORDER."""
    names = {device.name for device in case.devices}
    if case.vendor != "nvidia" or len(names) <= 1 or case.env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return None
    return Fault(
        what=f"devices of several kinds: {', '.join(sorted(names))}",
        fix="CUDA_DEVICE_ORDER=PCI_BUS_ID",
        mend=(("env.CUDA_DEVICE_ORDER", "PCI_BUS_ID"),),
    )
