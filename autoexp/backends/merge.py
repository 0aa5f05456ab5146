"""Merges checkpoints of safetensors or torch files: the weighted sum, without optimizers.

python -m autoexp.backends.merge CHECKPOINT... --weights W... --output DIRECTORY

Also runs by its path, in the trainer's Python: it needs NumPy, and torch for what torch has saved.
A safetensors file is the length of its header in 8 bytes, the header as JSON, and the tensors
(https://huggingface.co/docs/safetensors, Format).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

if __name__ == "__main__" and not __package__:  # the folder of this file has nothing for others
    sys.path.pop(0)

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CHUNK = (
    1 << 24
)  # elements that are summed at once: a large embedding need not fit in memory thrice
_LARGEST_HEADER = 100_000_000
_BESIDE = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
_TORCH = (".pt", ".pth", ".bin")
# What a trainer saves beside its model; of the last checkpoint nothing of it goes on.
_STATE = (
    *("optimizer", "optim", "scheduler", "lr_scheduler", "scaler", "rng", "random"),
    *("trainer_state", "training_args"),
)
_MODELS = ("model", "model_state_dict", "state_dict", "module")
_RECORD = "merged.json"


def merge(checkpoints: list[Path], weights: list[float], output: Path) -> int:
    """Write the sum, and the configuration of the last checkpoint; returns how many files.

    It appears under its name once it is whole. Raises SystemExit for checkpoints that do not match.
    """
    files = [_weights_of(checkpoint) for checkpoint in checkpoints]
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if {file.suffix for each in files for file in each} == {".safetensors"}:
        _merge_safetensors(files, weights, partial)
    else:
        _merge_torch(files, weights, partial)
    if checkpoints[-1].is_dir():
        for file in sorted(checkpoints[-1].iterdir()):
            if file.suffix in _BESIDE and file.is_file() and not file.name.startswith(_STATE):
                shutil.copyfile(file, partial / file.name)
    pairs = [[str(path), weight] for path, weight in zip(checkpoints, weights, strict=True)]
    (partial / _RECORD).write_text(json.dumps({"merged": pairs}, indent=1) + "\n")
    if not output.exists():  # else it was made before a kill, of the same inputs
        partial.rename(output)
    return len(files[-1])


def _weights_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that hold its model."""
    if checkpoint.is_file():
        return [checkpoint]
    try:
        names = sorted(checkpoint.iterdir())
    except OSError as error:
        raise SystemExit(f"{checkpoint}: {error.strerror}") from error
    files = [file for file in names if not file.name.startswith(_STATE)]
    found = [file for file in files if file.suffix == ".safetensors"]
    found = found or [file for file in files if file.suffix in _TORCH]
    if not found:
        raise SystemExit(f"{checkpoint}: has neither safetensors files nor files of torch")
    if any(file.name.startswith("adapter_") for file in found):
        raise SystemExit(f"{checkpoint}: the sum of adapters is no adapter of the summed models")
    return found


# safetensors


class _Tensor(NamedTuple):
    """A tensor in a file."""

    file: Path
    kind: str
    shape: list[int]
    begin: int
    """From the start of the file, in bytes."""
    size: int


class _Header(NamedTuple):
    """The begin of a file, as it stands there, and the tensors behind it."""

    raw: bytes
    tensors: dict[str, _Tensor]


def _header(file: Path) -> _Header:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            whole = file.stat().st_size
            if not 0 < length <= min(_LARGEST_HEADER, whole - 8):
                raise ValueError("its header is torn")
            raw = opened.read(length)
        tensors = {}
        for name, entry in json.loads(raw).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= whole - 8 - length:
                raise ValueError(f"{name} is not whole")
            kind, shape = entry["dtype"], entry["shape"]
            if kind in _BYTES and math.prod(shape) * _BYTES[kind] != end - begin:
                raise ValueError(f"{name} has other bytes than its shape")
            tensors[name] = _Tensor(file, kind, shape, 8 + length + begin, end - begin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{file}: not a safetensors file ({error})") from error
    return _Header(len(raw).to_bytes(8, "little") + raw, tensors)


def _merge_safetensors(files: list[list[Path]], weights: list[float], folder: Path) -> None:
    """Sum the tensors by name, however they are spread over files, into files as the last ones."""
    headers = [{file: _header(file) for file in each} for each in files]
    models = [
        {name: tensor for header in each.values() for name, tensor in header.tensors.items()}
        for each in headers
    ]
    for each in models[:-1]:
        _check(each, models[-1])
    for file, header in headers[-1].items():
        with (folder / file.name).open("wb") as target:
            target.write(header.raw)
            for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].begin):
                target.seek(tensor.begin)
                if tensor.kind in _FLOATS:
                    _sum([model[name] for model in models], weights, target)
                else:  # a counter, say: that of the last checkpoint
                    _copy(tensor, target)


def _check(own: dict[str, _Tensor], last: dict[str, _Tensor]) -> None:
    if others := sorted(own.keys() ^ last.keys()):
        where = next(iter(own.values())).file if own else "a checkpoint"
        raise SystemExit(f"{where}: {others[0]} is not in all checkpoints")
    for name, tensor in own.items():
        if tensor.shape != last[name].shape:
            raise SystemExit(f"{tensor.file}: {name} has another shape than in the last checkpoint")
        kinds = {tensor.kind, last[name].kind}
        if len(kinds) > 1 and not kinds <= _FLOATS.keys():
            raise SystemExit(
                f"{tensor.file}: {name} is {tensor.kind}, not as in the last checkpoint"
            )
    for name, tensor in last.items():
        if tensor.kind.startswith("F") and tensor.kind not in _FLOATS:
            raise SystemExit(f"{tensor.file}: {name} is {tensor.kind}, of which no sum can be made")


def _sum(tensors: list[_Tensor], weights: list[float], target: BinaryIO) -> None:
    import numpy as np

    last = tensors[-1]
    count = math.prod(last.shape)
    for first in range(0, count, _CHUNK):
        length = min(_CHUNK, count - first)
        total = np.zeros(length)
        for tensor, weight in zip(tensors, weights, strict=True):
            total += weight * _floats(tensor, first, length)
        target.write(_encoded(total, last.kind))


def _floats(tensor: _Tensor, first: int, length: int) -> Any:
    import numpy as np

    kind = np.dtype(_FLOATS[tensor.kind])
    offset = tensor.begin + first * kind.itemsize
    raw = np.fromfile(tensor.file, kind, length, offset=offset)
    if tensor.kind == "BF16":  # the upper half of a float32
        return (raw.astype("<u4") << 16).view("<f4").astype(np.float64)
    return raw.astype(np.float64)


def _encoded(values: Any, kind: str) -> bytes:
    import numpy as np

    if kind != "BF16":
        encoded: bytes = values.astype(_FLOATS[kind]).tobytes()
        return encoded
    single = values.astype("<f4")
    bits = single.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
    found = np.where(np.isfinite(single), rounded, (bits >> 16) | (np.isnan(single) * 0x40))
    halves: bytes = found.astype("<u2").tobytes()
    return halves


def _copy(tensor: _Tensor, target: BinaryIO) -> None:
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.begin)
        target.write(opened.read(tensor.size))


# torch


def _merge_torch(files: list[list[Path]], weights: list[float], folder: Path) -> None:
    try:
        torch = import_module("torch")
    except ImportError as error:
        message = f"{files[-1][0]} is a file of torch, and {sys.executable} has no torch"
        raise SystemExit(f"{message}; give `backend.merger` with the trainer's Python") from error
    names = [[file.name for file in each] for each in files]
    single = all(len(each) == 1 for each in names)
    if any(each != names[-1] for each in names) and not single:
        raise SystemExit(f"{files[0][0].parent}: has other files than the last checkpoint")
    for place, file in enumerate(files[-1]):
        loaded = [_loaded(each[place], torch) for each in files]
        torch.save(_merged(loaded, weights, file, torch), folder / file.name)


def _loaded(file: Path, torch: Any) -> dict[Any, Any]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise what they like
        reason = str(error).split("\n")[0]
        raise SystemExit(f"{file}: cannot be loaded as weights alone ({reason})") from error
    if not isinstance(found, dict):
        raise SystemExit(f"{file}: holds no state dict")
    return found


def _merged(loaded: list[dict[Any, Any]], weights: list[float], file: Path, torch: Any) -> Any:
    """The sum of state dicts, or of the model in checkpoints that hold more."""
    last = loaded[-1]
    inner = next((key for key in _MODELS if isinstance(last.get(key), dict)), None)
    if inner is None:
        return _summed(loaded, weights, str(file), torch)
    if not all(isinstance(each.get(inner), dict) for each in loaded):
        raise SystemExit(f"{file}: {inner} is not in all checkpoints")
    kept = {key: value for key, value in last.items() if not str(key).startswith(_STATE)}
    return {**kept, inner: _summed([each[inner] for each in loaded], weights, str(file), torch)}


def _summed(values: list[Any], weights: list[float], where: str, torch: Any) -> Any:
    last = values[-1]
    if isinstance(last, dict):
        if not all(isinstance(each, dict) and each.keys() == last.keys() for each in values):
            raise SystemExit(f"{where}: is not in all checkpoints, or with other names")
        return {
            key: _summed([each[key] for each in values], weights, f"{where}: {key}", torch)
            for key in last
        }
    if not isinstance(last, torch.Tensor) or not last.is_floating_point():
        return last
    if not all(isinstance(each, torch.Tensor) and each.shape == last.shape for each in values):
        raise SystemExit(f"{where}: has another shape than in the last checkpoint")
    total = torch.zeros(last.shape, dtype=torch.float64)
    for each, weight in zip(values, weights, strict=True):
        total += weight * each.to(torch.float64)
    return total.to(last.dtype)


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m autoexp.backends.merge")
    options.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    options.add_argument("--weights", nargs="+", type=float, required=True)
    options.add_argument("--output", type=Path, required=True, metavar="DIRECTORY")
    given = options.parse_args(arguments)
    if len(given.weights) != len(given.checkpoints):
        options.error(f"{len(given.weights)} weights for {len(given.checkpoints)} checkpoints")
    if not math.isclose(sum(given.weights), 1, rel_tol=1e-6):
        options.error(f"the weights add up to {sum(given.weights):g}, and not to 1")
    files = merge(given.checkpoints, given.weights, given.output)
    print(f"merged {len(given.weights)} checkpoints of {files} files: {given.output}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
