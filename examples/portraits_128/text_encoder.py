"""The smallest text encoder that fits SD1.x: bytes as tokens, one layer, random weights from a fixed seed.

The portraits model is unconditional. What its UNet was trained with, and all that it knows, is this encoder's
embedding of the empty prompt; other prompts are accepted and mean nothing.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

EMBEDDING_SIZE = 32


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: every byte is a token."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def build_text_encoder(seed: int = 0) -> CLIPTextModel:
    """A one-layer CLIP text model of width 32 for [`build_tokenizer`]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=514,
                hidden_size=EMBEDDING_SIZE,
                intermediate_size=2 * EMBEDDING_SIZE,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=512,
                eos_token_id=513,
                pad_token_id=513,
            )
        ).eval()


@torch.no_grad()
def empty_prompt_embedding() -> torch.Tensor:
    """`[1, 77, 32]`: the embedding that the UNet is trained with, rounded to half precision as it is shipped."""
    tokenizer, text_encoder = build_tokenizer(), build_text_encoder().half().float()
    ids = tokenizer("", padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids).last_hidden_state
