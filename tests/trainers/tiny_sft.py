"""Makes a model of some thousand parameters, its tokenizer and data: `PYTHON tiny_sft.py DIR`."""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(32)]

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    names = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory / "model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory / "model")
    chance = random.Random(1)
    (directory / "data").mkdir()
    with (directory / "data" / "train.jsonl").open("w") as file:
        for _ in range(2000):
            text = " ".join(chance.choices(WORDS, k=24))
            file.write(json.dumps({"text": text}) + "\n")
