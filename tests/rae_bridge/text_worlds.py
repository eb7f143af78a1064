"""Tiny text encoders with random weights, and a text model, for the tests of text in place of classes."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from encoder.models.openvision3 import OpenVision3
from encoder.models.shapes import CaptionerShape, DecoderShape, OpenVision3Shape, TextShape, ViTShape

WORDS = ["a", "an", "and", "red", "blue", "green", "cup", "ball", "fish", "above", "left", "of", "the", "is"]
WORDS += ["two", "three"]


def write_text_encoder(folder, kind, seed=0):
    """A folder with a tiny `t5`, `clip`, `llama` or `own` text encoder; returns its name."""
    torch.manual_seed(seed)
    if kind == "own":
        tower = {"width": 8, "layers": 1, "head_width": 4}
        shape = OpenVision3Shape(
            encoder=ViTShape(image_size=2, patch_size=1, in_channels=16, embed_dim=8, **tower),
            decoder=DecoderShape(in_width=8, patch_size=1, out_channels=16, **tower),
            text=TextShape(context_length=9, **tower),
            captioner=CaptionerShape(context_length=9, **tower),
        )
        OpenVision3(shape).save_pretrained(folder)
        return str(folder)
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    sizes = {"vocab_size": len(vocab), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if kind == "t5":
        model = T5EncoderModel(
            T5Config(**sizes, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    elif kind == "clip":
        body = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = CLIPTextModel(CLIPTextConfig(**sizes, **body, max_position_embeddings=12))
    else:
        body = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **body, max_position_embeddings=32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
