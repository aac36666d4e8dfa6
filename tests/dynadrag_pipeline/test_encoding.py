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
def test_what_is_longer_than_the_tokenizers_limit_is_left_out_and_said(tokenizer, text_encoder, caplog):
    """The tests' tokenizer takes a letter for a token: 75 fit between the marks of begin and end."""
    fitting = "a" * 75
    embedding = encode_prompt(tokenizer, text_encoder, fitting)
    assert not caplog.messages
    assert torch.equal(encode_prompt(tokenizer, text_encoder, fitting + " cat"), embedding)
    assert caplog.messages == ["`prompt` must have at most 77 tokens, got 80: this is left out: 'cat'."]


@torch.no_grad()
def test_a_tokenizer_without_a_limit_has_the_text_encoders(tokenizer, text_encoder):
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = int(1e30)
    assert torch.equal(
        encode_prompt(unlimited, text_encoder, "a cat"), encode_prompt(tokenizer, text_encoder, "a cat")
    )
