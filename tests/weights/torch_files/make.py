"""Made the .bin files of this folder, with torch 2.13.0: `python make.py`. Run it again only to add a case."""

import hashlib
import json
from pathlib import Path

import torch

HERE = Path(__file__).parent
torch.manual_seed(0)


def plain() -> dict[str, torch.Tensor]:
    base = torch.randn(6, 4)
    return {
        "embed.weight": base,
        "lm_head.weight": base,
        "transposed": base.t(),
        "rows": base[1:3],
        "steps": base[::2, 1::2],
        "turned": torch.randn(2, 3, 4).permute(2, 0, 1),
        "bf16": torch.randn(5, 3).bfloat16(),
        "f16": torch.randn(7).half(),
        "f64": torch.randn(2).double(),
        "i64": torch.arange(3),
        "i8": torch.arange(-3, 3, dtype=torch.int8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def note(state: dict[str, torch.Tensor]) -> dict[str, list[object]]:
    def digest(tensor: torch.Tensor) -> str:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(raw).hexdigest()

    return {name: [list(tensor.shape), digest(tensor)] for name, tensor in state.items()}


made = plain()
module = torch.nn.Linear(3, 2)
files = {
    "zip.bin": made,
    "module.bin": module.state_dict(),
    "new_types.bin": {"fp8": torch.randn(4, 4).to(torch.float8_e4m3fn), "u16": torch.tensor([1], dtype=torch.uint16)},
}
for name, state in files.items():
    torch.save(state, HERE / name)
torch.save(made, HERE / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"state_dict": dict(module.state_dict()), "epoch": 3}, HERE / "trainer.bin")
expected = {name: note(state) for name, state in files.items()}
expected |= {"legacy.bin": expected["zip.bin"], "trainer.bin": expected["module.bin"]}
(HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
