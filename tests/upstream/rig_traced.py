"""One set of flags for a real script, run twice: as it is with real tensors, and by a preflight without contents."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.preflight.child import Request, run_child, workplace
from kohya_ext.tracing.milestones import STEPS
from tests.upstream import rig

COUNTED = Path(__file__).with_name("rig_counted.py")
SIZE = ("--resolution=256,256", "--train_batch_size=1", "--seed=1", "--max_data_loader_n_workers=0")
BUCKETS = ("--enable_bucket", "--min_bucket_reso=128", "--max_bucket_reso=512", "--caption_extension=.txt")
LORA = ("--network_dim=4", "--network_alpha=2")
MODEL = "--pretrained_model_name_or_path"
SHORT = "t5xxl_max_token_length=32"


@dataclass(frozen=True)
class OnTheHost(Request):
    """A preflight that counts what is on the CPU, as it is where everything is."""

    device: str = "cpu"


def flags_of(script: str) -> tuple[str, ...]:
    """Models and data of a script: the rig's tiny ones."""
    assets = rig.work() / "assets"
    tiny = assets / "families"
    name = script.removesuffix(".py")
    network = f"--network_module=networks.{_NETWORKS.get(name.partition('_')[0], 'lora')}"
    more = (network, *LORA) if name.endswith("_network") else ()
    if name.startswith("flux"):
        model = [
            f"{MODEL}={tiny}/tiny_flux.safetensors", f"--ae={tiny}/tiny_ae.safetensors",
            f"--clip_l={tiny}/tiny_flux_clip_l.safetensors", f"--t5xxl={tiny}/tiny_t5.safetensors", f"--{SHORT}",
            "--timestep_sampling=shift", "--model_prediction_type=raw", "--guidance_scale=1.0", "--sdpa",
        ]  # fmt: skip
    elif name.startswith("sd3"):
        model = [
            f"{MODEL}={tiny}/tiny_sd3.safetensors", f"--t5xxl={tiny}/tiny_t5.safetensors",
            f"--clip_l={tiny}/tiny_sd3_clip_l.safetensors", f"--clip_g={tiny}/tiny_sd3_clip_g.safetensors",
            f"--{SHORT}", "--sdpa",
        ]  # fmt: skip
    elif name.startswith("lumina"):
        model = [
            f"{MODEL}={tiny}/tiny_lumina.safetensors", f"--gemma2={tiny}/tiny_gemma2.safetensors",
            f"--ae={tiny}/tiny_ae.safetensors", "--gemma2_max_token_length=32", "--sdpa",
        ]  # fmt: skip
    else:
        kind = "sdxl" if name.startswith("sdxl") else "sd15"
        model = [f"{MODEL}={assets}/tiny_{kind}.safetensors"]
        model += ["--no_half_vae"] if kind == "sdxl" else []
    return (*model, *more, f"--tokenizer_cache_dir={assets}/tokenizers", *SIZE, *BUCKETS)


_NETWORKS = {"flux": "lora_flux", "sd3": "lora_sd3", "lumina": "lora_lumina"}


def is_newer(script: str) -> bool:
    """Whether a script is of one of the newer families."""
    return script.startswith(("flux", "sd3", "lumina"))


def data_of(script: str, folder: Path) -> tuple[str, ...]:
    """Flags for four images of its own, caches are written next to them; where all caches stay on the CPU, for one.

    A preflight caches for one batch only. The others' are in the host's memory, which here is what is counted.
    """
    one = is_newer(script)
    images, metadata = folder / "data" / ("4_rig" if one else "1_rig"), {}
    images.mkdir(parents=True)
    for image in sorted((rig.work() / "assets" / "data" / "1_rig").glob("img0.png" if one else "img[0-3].png")):
        for file in (image, image.with_suffix(".txt")):
            shutil.copy(file, images)
        metadata[str(images / image.name)] = {"caption": "an image", "train_resolution": [256, 256]}
    if script != "fine_tune.py":
        return (f"--train_data_dir={images.parent}",)
    file = folder / "metadata.json"
    file.write_text(json.dumps(metadata), encoding="utf-8")
    return (f"--train_data_dir={images}", f"--in_json={file}", "--cache_latents")


def surroundings(script: str) -> dict[str, str]:
    """Variables with which a Python finds the rig's tiny models of the script's family."""
    shims = ["families/shim", "shim"] if is_newer(script) else ["shim"]
    rig_folder = Path(os.environ["KOHYA_RIG"])
    return {
        "RIG": str(rig_folder), "RIG_TINY": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(str(rig_folder / shim) for shim in shims),
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(rig.work() / "hf_home"),
        "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def counted(tree: Path, environment: str, script: str, flags: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """A real run, to its end: what `rig_counted` saw of it."""
    report, variables = folder / "counted.json", {**os.environ, **surroundings(script)}
    variables["PYTHONPATH"] += os.pathsep + str(rig.BUNDLE)
    python = rig.work() / "venv" / environment / "bin" / "python"
    output = (f"--output_dir={folder / 'out'}", "--output_name=counted", "--save_model_as=safetensors")
    done = subprocess.run(
        [str(python), str(COUNTED), str(report), script, *flags, *data_of(script, folder), *output],
        cwd=tree, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def traced(
    tree: Path, environment: str, script: str, flags: tuple[str, ...], folder: Path, *, activate: bool = False
) -> dict[str, Any]:
    """The child's report of a preflight of the same flags."""
    python = rig.work() / "venv" / environment / "bin" / "python"
    with workplace() as place:
        images = data_of(script, folder / "traced")
        request = OnTheHost(
            commands=[[str(tree / script), *flags, *images, f"--output_dir={place}", "--output_name=traced"]],
            until=STEPS, root=str(tree), directory=str(tree), paths=[str(tree)], images=str(place), activate=activate,
        )  # fmt: skip
        return run_child(python, request, place)
