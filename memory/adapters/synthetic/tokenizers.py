"""Toy tokenizers written by code: one token a letter, no file to download.

Prompts of lower-case letters tokenise without loss; every other character is the unknown token.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from string import ascii_lowercase
from typing import Any

MAX_CLIP_TOKENS = 77


def clip_tokenizer() -> Any:
    """A ``CLIPTokenizer`` over 55 tokens: ``<s>``, ``<pad>``, ``</s>``, letters, final letters."""
    from transformers import CLIPTokenizer

    tokens = ["<s>", "<pad>", "</s>", *ascii_lowercase, *(f"{c}</w>" for c in ascii_lowercase)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.json")
        merges = Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(
            str(vocabulary),
            str(merges),
            unk_token="</s>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            model_max_length=MAX_CLIP_TOKENS,
        )


def t5_tokenizer(max_length: int = 512) -> Any:
    """A fast tokenizer in T5's form: letters, then ``</s>``, padded with ``<pad>`` (id 0)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", " ", *ascii_lowercase])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = Lowercase()
    core.pre_tokenizer = Split("", behavior="isolated")
    core.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=max_length,
    )
