"""A look at the networks: the language model, the encoders, the VAE, and those that judge."""

from pathlib import Path

from harness.paper.headers import Shape, fields, npz_shapes, read_json, require, tensor_shapes

Look = tuple[dict[str, int], list[str]]
_VAE = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
_POOLED, _CLASSES = 2048, 1008
_VGG = "vgg16-397923af.pth"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[unused0]", "[unused1]")  # the spare ones become [bos] and [eos]


def language_model(path: Path) -> Look:
    """A causal language model of transformers: config, tokenizer, all files of its weights, their widths."""
    file = path / "config.json"
    config = fields(read_json(file), ("model_type", "hidden_size", "vocab_size"), file)
    shapes = _weights(path)
    embeddings = [shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")]
    wanted = (config["vocab_size"], config["hidden_size"])
    if embeddings and embeddings[0] != wanted:
        raise ValueError(f"{path}: the embeddings are {embeddings[0]}, config.json says {wanted}")
    pieces = _pieces(path)
    if pieces > config["vocab_size"]:
        raise ValueError(f"{path}: its tokenizer has {pieces} pieces, the model {config['vocab_size']}")
    counts = {"layers": config.get("num_hidden_layers", 0), "wide": config["hidden_size"]}
    return counts | {"pieces": pieces}, []


def _pieces(path: Path) -> int:
    """How many pieces the tokenizer has.

    Raises: ValueError: there is none, or it is damaged.
    """
    if (path / "tokenizer.json").is_file():
        file = path / "tokenizer.json"
        model = fields(read_json(file), ("model",), file)["model"]
        return len(fields(model, ("vocab",), file)["vocab"])
    if not (path / "tokenizer.model").is_file():
        raise ValueError(f"{path} has no tokenizer: neither tokenizer.json nor tokenizer.model")
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(str(path / "tokenizer.model")).get_piece_size()
    except (RuntimeError, OSError):
        raise ValueError(f"{path / 'tokenizer.model'} is damaged or cut off") from None


def _weights(path: Path) -> dict[str, Shape]:
    """Shapes of the weights in a folder of transformers, in one file or several.

    Raises: FileNotFoundError, ValueError: one is missing or damaged.
    """
    for name in _WEIGHTS:
        index = path / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(fields(read_json(index), ("weight_map",), index)["weight_map"].values()))
            missing = [file for file in files if not (path / file).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{path}: {len(missing)} of {len(files)} files are missing: {missing[0]}"
                )
            return {key: shape for file in files for key, shape in tensor_shapes(path / file).items()}
        if (path / name).is_file():
            return tensor_shapes(path / name)
    raise FileNotFoundError(f"{path} has no weights: {' or '.join(_WEIGHTS)}")


def openvision3(path: Path) -> Look:
    """A folder of releases, or one: 16 channels in, positions and widths as their configs say."""
    name = "open_clip_config.json"
    releases = [path] if (path / name).is_file() else sorted(file.parent for file in path.glob(f"*/{name}"))
    if not releases:
        raise ValueError(f"{path} holds no release: no {name} in it or in a folder of it")
    for folder in releases:
        model = fields(read_json(folder / name), ("model_cfg",), folder / name)["model_cfg"]
        vision = fields(model, ("vision_cfg",), folder / name)["vision_cfg"]
        vision = fields(vision, ("width", "image_size", "patch_size"), folder / name)
        width, side = vision["width"], vision["image_size"] // vision["patch_size"]
        if vision.get("in_channels") != 16:
            channels = vision.get("in_channels", 3)
            raise ValueError(f"{folder} takes {channels} channels, OpenVision 3 takes 16")
        file = folder / "open_clip_pytorch_model.bin"
        shapes = {key.removeprefix("visual."): shape for key, shape in tensor_shapes(file).items()}
        patch = (width, 16, vision["patch_size"], vision["patch_size"])
        wanted = {"conv1.weight": patch, "positional_embedding": (1 + side * side, width)}
        require(shapes, wanted, file, "what its config says")
    return {"releases": len(releases)}, []


def vae(path: Path) -> Look:
    """FLUX.1's: 16 channels at an eighth of the size, its scaling and shift."""
    config = fields(read_json(path / "config.json"), ("block_out_channels",), path / "config.json")
    for key, value in _VAE.items():
        if config.get(key) != value:
            raise ValueError(f"{path} is not FLUX.1's VAE: {key} is {config.get(key)!r}, must be {value!r}")
    widths = config["block_out_channels"]
    if len(widths) != 4:
        raise ValueError(
            f"{path} is not FLUX.1's VAE: {len(widths)} stages, must be 4 (an eighth of the size)"
        )
    file = path / "diffusion_pytorch_model.safetensors"
    shapes = tensor_shapes(file)
    require(shapes, {"encoder.conv_out.weight": (32, widths[-1], 3, 3)}, file, "what its config says")
    return {"channels": 16}, []


def clip(path: Path) -> Look:
    """A CLIP, or its vision tower, with its picture processor."""
    config = fields(read_json(path / "config.json"), ("model_type",), path / "config.json")
    if not str(config.get("model_type")).startswith("clip"):
        raise ValueError(f"{path} is not CLIP: model_type is {config.get('model_type')!r}")
    read_json(path / "preprocessor_config.json")
    sizes = ("hidden_size", "patch_size", "image_size")
    vision = fields(config.get("vision_config", config), sizes, path / "config.json")
    width, patch = vision["hidden_size"], vision["patch_size"]
    name = "vision_model.embeddings.patch_embedding.weight"
    require(_weights(path), {name: (width, 3, patch, patch)}, path, "what its config says")
    return {"tokens": (vision["image_size"] // patch) ** 2, "wide": width}, []


def inception(path: Path) -> Look:
    """FID's Inception, by torch-fidelity's names."""
    wanted = {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "fc.weight": (_CLASSES, _POOLED)}
    shapes = tensor_shapes(path)
    require(shapes, wanted, path, "the 2015 Inception")
    return {"tensors": len(shapes)}, []


def lpips(path: Path) -> Look:
    """AlexNet, which judges, by torchvision's names, and beside it VGG16, which decoders are trained with."""
    wanted = {"features.0.weight": (64, 3, 11, 11), "features.10.weight": (256, 256, 3, 3)}
    shapes = tensor_shapes(path)
    require(shapes, wanted, path, "torchvision's AlexNet")
    beside = path.with_name(_VGG)
    if not beside.is_file():
        raise FileNotFoundError(f"no {_VGG} beside {path}: decoders are trained with it")
    deeper = {"features.0.weight": (64, 3, 3, 3), "features.28.weight": (512, 512, 3, 3)}
    require(tensor_shapes(beside), deeper, beside, "torchvision's VGG16")
    return {"tensors": len(shapes)}, []


def adm(path: Path) -> Look:
    """Statistics of 2048 pooled and 2023 spatial features, and pictures."""
    shapes = npz_shapes(path)
    wanted = {"mu": (_POOLED,), "sigma": (_POOLED, _POOLED), "mu_s": (2023,), "sigma_s": (2023, 2023)}
    require(shapes, wanted, path, "ADM's statistics")
    pictures = shapes.get("arr_0", ())
    if len(pictures) != 4 or pictures[1:] != (256, 256, 3):
        raise ValueError(f"{path} is not ADM's of 256 px: arr_0 is {pictures or 'missing'}")
    return {"pictures": pictures[0]}, []


def dino(path: Path) -> Look:
    """DINO ViT-S/8, by timm's names."""
    wanted = {"patch_embed.proj.weight": (384, 3, 8, 8), "blocks.11.attn.qkv.weight": (1152, 384)}
    shapes = tensor_shapes(path)
    require(shapes, wanted, path, "timm's vit_small_patch8_224.dino")
    return {"tensors": len(shapes)}, []


def bert(path: Path) -> Look:
    """BERT's vocabulary with the entries that an encoder's texts need."""
    file = path / "vocab.txt"
    if not file.is_file():
        raise FileNotFoundError(f"no vocab.txt in {path}")
    words = file.read_text(encoding="utf-8-sig").splitlines()
    if missing := [word for word in _BERT_WORDS if word not in words]:
        raise ValueError(f"{file} is no vocabulary of BERT: it has no {missing[0]}")
    return {"words": len(words)}, []
