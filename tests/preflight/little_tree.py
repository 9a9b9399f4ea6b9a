"""A small tree of training code, of ours, that has the names a preflight goes by and checks a few arguments."""

from __future__ import annotations

from pathlib import Path

LIBRARY = """
import argparse, math, os
import torch

class Info:
    def __init__(self, path, caption, repeats):
        self.absolute_path, self.caption, self.num_repeats = path, caption, repeats

class Subset:
    def __init__(self, image_dir, num_repeats, img_count, extension):
        self.image_dir, self.num_repeats, self.img_count = image_dir, num_repeats, img_count
        self.caption_extension, self.class_tokens = extension, os.path.basename(image_dir).partition("_")[2]

class Manager:
    def __init__(self, reso, keys):
        self.resos, self.buckets = [reso], [keys]

class ImageSet(torch.utils.data.Dataset):
    def __init__(self, folder, repeats, batch_size, reso, extension):
        self.width, self.height = reso
        self.batch_size = batch_size
        names = sorted(n for n in os.listdir(folder) if n.endswith(".png"))
        self.image_data = {}
        for name in names:
            text = os.path.join(folder, name[:-4] + ".txt")
            caption = open(text).read().strip() if os.path.exists(text) else ""
            self.image_data[name] = Info(os.path.join(folder, name), caption, repeats)
        self.num_train_images, self.num_reg_images = len(names) * repeats, 0
        self.subsets = [Subset(folder, repeats, len(names), extension)]
        self.image_to_subset = dict.fromkeys(names, self.subsets[0])
        for image_info in self.image_data.values():
            reso[0] / os.path.getsize(image_info.absolute_path)
        self.bucket_manager = Manager(reso, [n for n in names for _ in range(repeats)])
    def __len__(self):
        return math.ceil(self.num_train_images / self.batch_size)
    def __getitem__(self, index):
        return index

class DatasetGroup(torch.utils.data.ConcatDataset):
    def cache_latents(self, vae):
        self.cached = True

def get_scheduler_fix(args, optimizer, processes=1):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

def get_optimizer(args, params):
    if not hasattr(torch.optim, args.optimizer_type):
        raise AttributeError(f"module 'torch.optim' has no attribute '{args.optimizer_type}'")
    return getattr(torch.optim, args.optimizer_type)(params, lr=args.learning_rate)
"""
SCRIPT = """
import argparse, math, os
import torch
from library import train_util

def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained_model_name_or_path")
    parser.add_argument("--train_data_dir")
    parser.add_argument("--output_dir")
    parser.add_argument("--output_name")
    parser.add_argument("--resolution", type=str, default="64,64")
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--max_train_epochs", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=10)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--optimizer_type", default="AdamW")
    parser.add_argument("--shuffle_caption", action="store_true")
    parser.add_argument("--cache_text_encoder_outputs", action="store_true")
    parser.add_argument("--caption_extension", default=".txt")
    parser.add_argument("--network_module")
    parser.add_argument("--write")
    parser.add_argument("--config_file")
    parser.add_argument("--deepspeed", action="store_true")
    return parser

def train(args):
    if args.config_file:
        import toml
        vars(args).update(toml.load(args.config_file))
    if args.cache_text_encoder_outputs:
        assert (
            not args.shuffle_caption
        ), "captions are cached, they cannot be shuffled / \\u3067\\u304d\\u307e\\u305b\\u3093"
    if args.write:
        open(args.write, "w")
    if args.deepspeed:
        int(os.environ["WORLD_SIZE"])
    folder = sorted(os.listdir(args.train_data_dir))
    repeats = int(folder[0].split("_")[0])
    reso = tuple(int(part) for part in args.resolution.split(","))
    if args.network_module:
        __import__(args.network_module)
    place = os.path.join(args.train_data_dir, folder[0])
    one = train_util.ImageSet(place, repeats, args.train_batch_size, reso, args.caption_extension)
    group = train_util.DatasetGroup([one])
    os.makedirs(args.output_dir, exist_ok=True)
    from safetensors.torch import load_file
    weights = load_file(args.pretrained_model_name_or_path)
    unet = torch.nn.Linear(8, 8)
    unet.weight.requires_grad_(True)
    group.cache_latents(None)
    optimizer = train_util.get_optimizer(args, list(unet.parameters()))
    loader = torch.utils.data.DataLoader(group, batch_size=1, num_workers=2, persistent_workers=True)
    each = math.ceil(len(loader) / args.gradient_accumulation_steps)
    args.max_train_steps = args.max_train_epochs * each
    scheduler = train_util.get_scheduler_fix(args, optimizer, 1)
    import accelerate
    assert not args.deepspeed, "an engine, which asks for several processes and a GPU"
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    unet, optimizer, loader, scheduler = accelerator.prepare(unet, optimizer, loader, scheduler)
    for batch in loader:
        assert args.resolution != "32,32", "the image is too large for resolution"
        with accelerator.accumulate(unet):
            loss = unet(torch.zeros(args.train_batch_size << 18, 8, device=accelerator.device)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

if __name__ == "__main__":
    train(setup_parser().parse_args())
"""


def little_tree(root: Path) -> Path:
    """sd-scripts, as far as a checkout and a preflight ask for it."""
    for name, text in {
        "library/__init__.py": "",
        "library/train_util.py": LIBRARY,
        "networks/__init__.py": "",
        "sdxl_train.py": SCRIPT,
        "fine_tune.py": SCRIPT,
        "train_network.py": SCRIPT,
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root
