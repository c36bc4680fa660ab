"""What `cpgr doctor` looks at. Each check gives items {name, ok, found, note}; `ok` is None for what may be absent.

A check never raises: a package that breaks at import is exactly what the command is asked about.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
WEIGHTS = {
    "detector": "proposals, and the visual branch of Grounding", "bert": "the text encoder of Grounding",
    "blip2": "the captioner of Generation", "blip2-itm": "the matcher of Generation",
}  # fmt: skip

# Distribution name -> module.
ESSENTIAL = {
    "torch": "torch", "transformers": "transformers", "peft": "peft", "accelerate": "accelerate", "safetensors": "safetensors",
    "pyarrow": "pyarrow", "pycocotools": "pycocotools", "Pillow": "PIL", "jsonargparse": "jsonargparse", "PyYAML": "yaml",
    "rich": "rich", "matplotlib": "matplotlib", "numpy": "numpy",
}  # fmt: skip

# Distribution names that give the same module -> module, what it is for, how to get it.
OPTIONAL = {
    ("onnxruntime", "onnxruntime-gpu"): ("onnxruntime", "detectors in ONNX files", 'pip install "cpgr[onnx]"'),
    ("simplejpeg",): ("simplejpeg", "faster decoding of JPEG files", 'pip install "cpgr[decode]"'),
    ("nvidia-dali-cuda130", "nvidia-dali-cuda120"): ("nvidia.dali", "decoding of JPEG files on a GPU", 'pip install "cpgr[dali]"'),
    ("flash-attn",): ("flash_attn", "flash attention in the models", "pip install flash-attn --no-build-isolation"),
}


def item(name: str, ok: bool | None, found: object, note: str = "") -> dict:
    return {"name": name, "ok": ok, "found": str(found), "note": note}


def examine() -> dict[str, list[dict]]:
    """Every check's items, by section."""
    return {
        "packages": packages(), "optional_packages": optional(), "device": _guarded(device), "kernels": _guarded(kernels),
        "attention": _guarded(attention), "decoding": _guarded(decoding), "shipped_weights": weights(),
    }  # fmt: skip


def _guarded(check: Callable[[], list[dict]]) -> list[dict]:
    try:
        return check()
    except Exception as error:
        return [item(check.__name__, False, _short(error))]


def packages() -> list[dict]:
    """The packages that cpgr needs: their versions, whether they import, whether they are ones it asks for."""
    new_enough = sys.version_info >= (3, 10)
    items = [item("python", new_enough, platform.python_version(), "" if new_enough else "3.10 or later is needed")]
    wanted = _wanted()
    for name, module in ESSENTIAL.items():
        try:
            importlib.import_module(module)
            version = metadata.version(name)
        except Exception as error:
            items.append(item(name, False, _short(error), f'pip install "{name}{wanted.get(name.lower(), "")}"'))
            continue
        fits = not wanted.get(name.lower()) or wanted[name.lower()].contains(version, prereleases=True)
        items.append(item(name, fits, version, "" if fits else f'pip install "{name}{wanted[name.lower()]}"'))
    return items


def _wanted() -> dict:
    """The version bounds that the installed cpgr declares, by name; none where it runs from its source folder."""
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(line) for line in metadata.requires("cpgr") or []]
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {r.name.lower(): r.specifier for r in asked if r.marker is None}


def optional() -> list[dict]:
    """Packages that make more possible; the command that gets each one that is missing."""
    items = []
    for names, (module, purpose, command) in OPTIONAL.items():
        version = next((v for name in names if (v := _version(name))), None)
        if version is None:
            items.append(item(names[0], None, "not installed", f"{purpose}: {command}"))
            continue
        try:
            importlib.import_module(module)
            items.append(item(names[0], True, version, purpose))
        except Exception as error:
            items.append(item(names[0], None, f"{version} is installed but does not import: {_short(error)}", purpose))
    return items


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device() -> list[dict]:
    """Where a run computes, and in which precision."""
    import torch

    from ..training import make_accelerator

    accelerator = make_accelerator("auto")
    if torch.cuda.is_available():
        own = torch.cuda.get_device_properties(accelerator.device)
        about = f"{own.name}, {own.total_memory / 2**30:.0f} GiB, compute capability {own.major}.{own.minor}"
        why = "the GPU computes bf16" if accelerator.mixed_precision == "bf16" else "the GPU does not compute bf16"
    else:
        about = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        why = "this CPU multiplies bf16" if accelerator.mixed_precision == "bf16" else "this CPU does not multiply bf16 (no avx512_bf16)"
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return [item("device", True, accelerator.device, about), item("precision auto", True, precision, why)]


def kernels() -> list[dict]:
    """Which backend runs each op and why, whether it gives the right answer, and what was compiled."""
    import cpgr_kernels
    import torch

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]])
    right = bool(torch.allclose(cpgr_kernels.box_iou(boxes, boxes)[0, 1], torch.tensor(1 / 7)))
    items = [item("self-test", right, f"box_iou gives {'the right' if right else 'a wrong'} answer", "" if right else "reinstall cpgr")]
    rows = cpgr_kernels.backends()
    for device_name in dict.fromkeys(row.device for row in rows):
        items += _backends_on(device_name, [row for row in rows if row.device == device_name])
    for name, about in cpgr_kernels.build_info().items():
        detail = ", ".join(f"{key} {value}" for key, value in about.items() if key != "built")
        items.append(item(f"compiled for {name}", about["built"] or None, "built" if about["built"] else "not built", detail))
    return items


def _backends_on(device_name: str, rows: list) -> list[dict]:
    """A line an op: what runs it and what else could or could not; one line for all where the device is not there."""
    reasons = {row.reason for row in rows}
    if not any(row.available for row in rows) and len(reasons) == 1:
        return [item(f"every op on {device_name}", None, "cannot run", reasons.pop())]
    items = []
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        chosen = next((row for row in mine if row.chosen), None)
        others = [f"{row.backend}: {row.reason}" if not row.available else f"{row.backend} can run" for row in mine if row is not chosen]
        note = "; ".join([chosen.reason, *others] if chosen else others)
        items.append(item(f"{op} on {device_name}", chosen is not None, chosen.backend if chosen else "cannot run", note))
    return items


def attention() -> list[dict]:
    """The attention implementations that the models can take (`attn_implementation`)."""
    from transformers.utils import is_flash_attn_2_available

    items = [item(name, True, "can run") for name in ("eager", "sdpa")]
    flash = is_flash_attn_2_available()
    items.append(item("flash_attention_2", flash or None, "can run" if flash else "cannot run", "" if flash else "needs flash-attn and a GPU"))
    try:
        importlib.import_module("cpgr_kernels.integrations.transformers")
        items.append(item("cpgr", True, "can run", "attention maps from any model"))
    except ImportError as error:
        items.append(item("cpgr", None, "cannot run", _short(error)))
    return items


def decoding() -> list[dict]:
    """What decodes JPEG files, at which speed here, and what `--data.decoder auto` takes and why."""
    from ..data import decoding as engines

    chosen, items = engines.choose(), []
    for name in engines.ENGINES:
        if why := engines.missing(name):
            items.append(item(name, None, "cannot run", why))
            continue
        engine = engines.make(name)
        note = "in force: the fastest" if name == chosen else "on a CPU where it is named alone" if name == "dali" else "slower"
        speed = engines.rates().get(name) or engines.rate(engine)
        items.append(item(name, True, f"{speed:.0f} images of 640 x 480 a second on the {engine.device}", note))
    return items


def weights() -> list[dict]:
    """The models that ship with the package."""
    items = []
    for name, purpose in WEIGHTS.items():
        files = [path for path in (BUILTIN / name).rglob("*") if path.is_file()]
        there = any(path.suffix == ".safetensors" for path in files) and (BUILTIN / name / "config.json").is_file()
        size = sum(path.stat().st_size for path in files) / 1e6
        readable = all(os.access(path, os.R_OK) for path in files)
        note = purpose if there and readable else f"{purpose}; reinstall cpgr"
        items.append(item(name, there and readable, f"{size:.1f} MB" if there and readable else "missing" if not there else "not readable", note))
    return items


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:200]
