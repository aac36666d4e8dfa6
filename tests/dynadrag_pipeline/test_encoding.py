"""Prompts, embedded with the UNet that they are for and without one."""

from __future__ import annotations

import copy

import pytest
import torch

from dynadrag_pipeline.encoding import encode_prompt
from support.tiny_models import make_unet


@torch.no_grad()
def test_a_prompt_is_embedded_without_a_unet_in_the_text_encoders_precision(tokenizer, text_encoder):
    embedding = encode_prompt(tokenizer, text_encoder, "a cat")
    ids = tokenizer("a cat").input_ids
    assert embedding.shape == (1, 77, 16)
    # Attention is causal: what a prompt is filled up with changes nothing before it.
    expected = text_encoder(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(embedding[:, : len(ids)], expected, rtol=1e-5, atol=1e-5)
    half = copy.deepcopy(text_encoder).to(torch.bfloat16)
    assert encode_prompt(tokenizer, half, "a cat").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@torch.no_grad()
def test_with_the_unet_that_it_is_for_it_has_that_ones_precision(tokenizer, text_encoder, dtype):
    embedding = encode_prompt(tokenizer, text_encoder, "a cat", unet=make_unet().to(dtype))
    assert torch.equal(embedding, encode_prompt(tokenizer, text_encoder, "a cat").to(dtype))
    assert embedding.dtype == dtype


@torch.no_grad()
def test_what_is_longer_than_the_tokenizers_limit_is_left_out(tokenizer, text_encoder):
    words = "a cat " * 60
    assert torch.equal(
        encode_prompt(tokenizer, text_encoder, words), encode_prompt(tokenizer, text_encoder, words + "on a mat")
    )
