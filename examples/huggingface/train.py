"""A small language model with Hugging Face's Trainer: random weights, generated text, no download.

    python examples/huggingface/train.py --output_dir out --max_steps 100 --save_steps 50

What matters for autoexp is one line: `--resume_from_checkpoint` is passed on to the Trainer, as
Transformers' own examples do. A cooldown is given the checkpoint that it branches from.
"""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


@dataclass
class ModelArguments:
    """The size of the model and of its language."""

    hidden_size: int = field(default=64, metadata={"help": "width of the model"})
    layers: int = field(default=2, metadata={"help": "transformer layers"})
    symbols: int = field(default=64, metadata={"help": "tokens of the generated language"})
    sequence_length: int = field(default=32, metadata={"help": "tokens of a sample"})
    dialect: int = field(default=1, metadata={"help": "which of many such languages: the data set"})


class Language(Dataset):
    """Sequences of a random language in which each symbol prefers a few followers."""

    def __init__(self, symbols: int, length: int, dialect: int, samples: int = 20_000) -> None:
        chance = torch.Generator().manual_seed(dialect)
        follows = torch.softmax(3 * torch.randn(symbols, symbols, generator=chance), dim=-1)
        state = torch.randint(symbols, (samples,), generator=chance)
        steps = [state]
        for _ in range(length - 1):
            state = torch.multinomial(follows[state], 1, generator=chance).squeeze(1)
            steps.append(state)
        self.samples = torch.stack(steps, dim=1)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.samples[index], "labels": self.samples[index]}


def main() -> None:
    """Train to `--max_steps`, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    sizes, arguments = HfArgumentParser(
        (ModelArguments, TrainingArguments)
    ).parse_args_into_dataclasses()
    config = LlamaConfig(
        vocab_size=sizes.symbols,
        hidden_size=sizes.hidden_size,
        intermediate_size=2 * sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        max_position_embeddings=sizes.sequence_length,
    )
    torch.manual_seed(arguments.seed)
    model = LlamaForCausalLM(config)
    data = Language(sizes.symbols, sizes.sequence_length, sizes.dialect)
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)


if __name__ == "__main__":
    main()
