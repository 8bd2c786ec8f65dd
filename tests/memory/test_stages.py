"""Components are recognised by the names diffusers gives them."""

import pytest
from lowtide.memory.stages import stage_of


@pytest.mark.parametrize(
    ("component", "stage"),
    [
        ("text_encoder", "text_encoding"),
        ("text_encoder_3", "text_encoding"),
        ("image_encoder", "text_encoding"),
        ("prior_text_encoder", "text_encoding"),
        ("unet", "denoising"),
        ("transformer_2", "denoising"),
        ("controlnet", "denoising"),
        ("prior_prior", "denoising"),
        ("vae", "decoding"),
        ("vqgan", "decoding"),
        ("movq", "decoding"),
        ("safety_checker", None),
        ("tokenizer", None),
        ("scheduler", None),
    ],
)
def test_each_component_has_its_stage(component, stage):
    assert stage_of(component) == stage
