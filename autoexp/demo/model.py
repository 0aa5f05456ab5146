"""A synthetic language of known entropy, and its learner: model, optimizer, learning rate.

The language is a Markov source of order two over 27 characters. Every pair of characters has a
list of 256 equally likely successors, so probabilities are counts and the entropy rate is exact:
no model's expected loss is below it. It is the part of `autoexp.demo.trainer` that is about
learning; everything about iterations, checkpoints and logs is over there. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Characters: TypeAlias = NDArray[np.uint8]

VOCABULARY = 27
ORDER = 2
SUCCESSORS = 256  # one random byte picks the next character: the whole text takes 0.1 s

# How much a character depends on each of the two before it, and on the pair. The first is learnt
# within a hundred iterations, the second keeps the loss falling for thousands.
_SINGLE_STRENGTH = 1.5
_PAIR_STRENGTH = 1.0

# 4 million characters: 16,000 iterations at 256 windows before a window comes twice on average, so
# that the training loss is as good as a validation loss and the floor holds for it.
_LINES = 16_384
LINE_LENGTH = 256

# Batches of the training come from the third stream of the seed, those of a validation from this.
_HELD_OUT_STREAM = 7
_HELD_OUT = 32_768

# Multiplies the logits, and with them the noise that a constant learning rate leaves in the loss.
# At 1.5 a cooldown from a rate of 1e-2 gains about 0.2 nats, at 1.0 only 0.13.
LOGIT_SCALE = 1.5


# Kinds of text: each has pairs of its own in part, and shares the rest with `web`, which is the
# language itself. So a model of one is a start for the others, and each gains from its own text.
WEB = "web"
MIXES = {WEB: 0.0, "code": 0.5, "math": 0.7, "prose": 0.3}
_MIX_STREAM = 11


@dataclass(frozen=True)
class Language:
    """A language and a text in it, `text[line, position]`; the floor is in nats per character."""

    successors: Characters
    entropy_floor: float
    text: Characters


def read_mix(written: str | None) -> dict[str, float]:
    """Shares of the kinds of text, from `web:3,code:1`; raises ValueError for another."""
    parts = [part.partition(":") for part in (written or WEB).split(",")]
    weights = {name: float(weight or 1) for name, _, weight in parts}
    if unknown := [name for name in weights if name not in MIXES]:
        raise ValueError(f"there is no text of the kind {unknown[0]!r}: {', '.join(MIXES)}")
    total = sum(weights.values())
    if len(weights) < len(parts) or not 0 < total < math.inf or min(weights.values()) < 0:
        raise ValueError(f"{written!r} is no mix, such as `web:3,code:1`")
    return {name: weight / total for name, weight in weights.items()}


def draw_mix(seed: int, mix: str | None) -> Language:
    """A text of several kinds, line by line by their shares; its floor is that of knowing which."""
    shares = read_mix(mix)
    if list(shares) == [WEB]:
        return draw_language(seed)
    kinds = [draw_language(seed, name) for name in shares]
    rng = np.random.default_rng([seed, _MIX_STREAM])
    chosen = rng.choice(len(kinds), size=_LINES, p=list(shares.values()))
    text = np.stack([kind.text for kind in kinds])[chosen, np.arange(_LINES)]
    floor = sum(k.entropy_floor * share for k, share in zip(kinds, shares.values(), strict=True))
    return Language(kinds[0].successors, floor, text)


def draw_language(seed: int, kind: str = WEB) -> Language:
    """Draw a language and a text in it; the same seed and kind give the same both."""
    rng = np.random.default_rng([seed, 1])
    v = VOCABULARY
    logits = _SINGLE_STRENGTH * rng.standard_normal((v, 1, v))
    logits = logits + _SINGLE_STRENGTH * rng.standard_normal((1, v, v))
    pairs_of_web = rng.standard_normal((v, v, v))
    if own := MIXES[kind]:
        rng = np.random.default_rng([seed, 1, *kind.encode()])
        other = rng.standard_normal((v, v, v))
        pairs_of_web = math.sqrt(1 - own) * pairs_of_web + math.sqrt(own) * other
    logits = logits + _PAIR_STRENGTH * pairs_of_web
    weights = np.exp(logits)
    cumulative = (weights / weights.sum(-1, keepdims=True)).cumsum(-1)
    quantiles = (np.arange(SUCCESSORS) + 0.5) / SUCCESSORS
    slots = (cumulative[:, :, None, :] < quantiles[:, None]).sum(-1)
    # Rounding can leave the last cumulative sum a hair below one.
    successors = np.minimum(slots, v - 1).astype(np.uint8)

    pairs = stationary_pairs(probabilities(successors))
    return Language(
        successors=successors,
        entropy_floor=entropy_rate(probabilities(successors), pairs),
        text=_write_text(successors, pairs, rng),
    )


def probabilities(successors: Characters) -> NDArray[np.float64]:
    """P[a, b, c]: how likely c follows the characters a, b."""
    return np.stack([(successors == c).mean(-1) for c in range(VOCABULARY)], axis=-1)


def stationary_pairs(following: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequency of each pair of characters in an endless text, by power iteration."""
    pairs = np.full((VOCABULARY, VOCABULARY), VOCABULARY**-2.0)
    for _ in range(10_000):
        after: NDArray[np.float64] = np.einsum("ab,abc->bc", pairs, following)
        change = float(np.abs(after - pairs).sum())
        pairs = after / after.sum()
        if change < 1e-13:
            break
    return pairs


def entropy_rate(following: NDArray[np.float64], pairs: NDArray[np.float64]) -> float:
    """Nats per character: the entropy of the next character, averaged over the pairs."""
    surprise = -np.log(np.where(following > 0, following, 1.0))
    return float(np.sum(pairs[:, :, None] * following * surprise))


def _write_text(
    successors: Characters, pairs: NDArray[np.float64], rng: np.random.Generator
) -> Characters:
    """Write all lines at once, each begun with a pair as frequent as in an endless text."""
    text = np.empty((_LINES, LINE_LENGTH), dtype=np.uint8)
    pair = rng.choice(VOCABULARY**2, size=_LINES, p=pairs.ravel())
    text[:, 0], text[:, 1] = pair // VOCABULARY, pair % VOCABULARY
    table = successors.reshape(-1, SUCCESSORS)
    for position in range(ORDER, LINE_LENGTH):
        following = table[pair, rng.integers(0, SUCCESSORS, _LINES, dtype=np.uint8)]
        text[:, position] = following
        pair = pair % VOCABULARY * VOCABULARY + following
    return text


@dataclass(frozen=True)
class Sizes:
    context: int
    embedding: int
    hidden: int


class CharacterModel:
    """Embeddings of the last characters, one tanh layer, a softmax over the next character.

    All weights live in one flat array, all gradients in another: the optimizer's arithmetic and
    the gradient norm are a few calls on whole arrays. `weights` and `gradients` are views by name.
    """

    def __init__(self, sizes: Sizes, seed: int, dtype: type[np.floating[Any]] = np.float32) -> None:
        width = sizes.context * sizes.embedding
        self.shapes: dict[str, tuple[int, ...]] = {
            "embedding": (VOCABULARY, sizes.embedding),
            "hidden": (width, sizes.hidden),
            "output": (sizes.hidden, VOCABULARY),
            "hidden_bias": (sizes.hidden,),
            "output_bias": (VOCABULARY,),
        }
        self.flat: Floats = np.zeros(sum(map(math.prod, self.shapes.values())), dtype)
        self.flat_gradient: Floats = np.zeros_like(self.flat)
        self.weights = self._views(self.flat)
        self.gradients = self._views(self.flat_gradient)
        # The biases stand last, so that weight decay is a slice.
        self.decayed = self.flat[: -(sizes.hidden + VOCABULARY)]
        self._one_hot = np.eye(VOCABULARY, dtype=dtype)

        rng = np.random.default_rng([seed, 2])
        for name, scale in (("embedding", 1.0), ("hidden", width**-0.5), ("output", 0.02)):
            self.weights[name][...] = scale * rng.standard_normal(self.shapes[name])

    def _views(self, flat: Floats) -> dict[str, Floats]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        pieces = np.split(flat, ends[:-1])
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def loss_and_gradient(self, windows: Characters) -> float:
        """Mean loss in nats of predicting each window's last character; fills the gradients."""
        w, grad = self.weights, self.gradients
        batch = len(windows)
        rows = np.arange(batch)
        context, target = windows[:, :-1], windows[:, -1]

        embedded = w["embedding"][context].reshape(batch, -1)
        hidden = embedded @ w["hidden"]
        hidden += w["hidden_bias"]
        np.tanh(hidden, out=hidden)
        logits = hidden @ w["output"]
        logits += w["output_bias"]
        logits *= LOGIT_SCALE
        logits -= logits.max(axis=1, keepdims=True)
        of_target = logits[rows, target]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - of_target))

        # From here on `d_x` is the loss's derivative by x; the logits' array becomes its own.
        d_logits = logits
        d_logits /= total
        d_logits[rows, target] -= 1
        d_logits *= LOGIT_SCALE / batch
        np.matmul(hidden.T, d_logits, out=grad["output"])
        np.sum(d_logits, axis=0, out=grad["output_bias"])
        d_hidden = d_logits @ w["output"].T
        hidden *= hidden
        np.subtract(1, hidden, out=hidden)
        d_hidden *= hidden
        np.matmul(embedded.T, d_hidden, out=grad["hidden"])
        np.sum(d_hidden, axis=0, out=grad["hidden_bias"])
        d_embedded = (d_hidden @ w["hidden"].T).reshape(context.size, -1)
        # A product with a one-hot matrix adds up a character's rows far faster than np.add.at.
        np.matmul(self._one_hot[context.ravel()].T, d_embedded, out=grad["embedding"])
        return loss


class HeldOut:
    """The same windows of a text each time: they are drawn apart from those of the training."""

    def __init__(self, text: Characters, seed: int, context: int) -> None:
        dice = np.random.default_rng([seed, _HELD_OUT_STREAM])
        lines = dice.integers(0, len(text), (_HELD_OUT, 1))
        starts = dice.integers(0, text.shape[1] - context, (_HELD_OUT, 1))
        self.windows = text[lines, starts + np.arange(context + 1)]

    def loss(self, model: CharacterModel) -> float:
        """Nats per character; the model's gradients are those of these windows afterwards."""
        return float(model.loss_and_gradient(self.windows))


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), biases excepted."""

    beta1, beta2, epsilon = 0.9, 0.95, 1e-8

    def __init__(self, model: CharacterModel, weight_decay: float) -> None:
        self.model = model
        self.weight_decay = weight_decay
        self.first = np.zeros_like(model.flat)
        self.second = np.zeros_like(model.flat)
        self._update = np.empty_like(model.flat)

    def step(self, learning_rate: float, iteration: int) -> None:
        """Apply the model's gradients; `iteration` counts from 1, for the bias correction."""
        gradient, update = self.model.flat_gradient, self._update
        self.first *= self.beta1
        np.multiply(gradient, 1 - self.beta1, out=update)
        self.first += update
        self.second *= self.beta2
        np.multiply(gradient, gradient, out=update)
        update *= 1 - self.beta2
        self.second += update

        np.sqrt(self.second, out=update)
        update *= 1 / math.sqrt(1 - self.beta2**iteration)
        update += self.epsilon
        np.divide(self.first, update, out=update)
        update *= learning_rate / (1 - self.beta1**iteration)
        self.model.decayed *= 1 - learning_rate * self.weight_decay
        self.model.flat -= update


DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "minus_sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "exponential": lambda x: 2 * math.pow(0.5, x) - 1,  # Megatron's
}


@dataclass(frozen=True)
class Schedule:
    """Warmup, a constant rate, and with style WSD a decay; the fields are Megatron's arguments."""

    lr: float
    min_lr: float = 0.0
    lr_warmup_iters: int = 0
    lr_decay_iters: int = 0
    lr_decay_style: str = "constant"
    lr_wsd_decay_iters: int | None = None
    lr_wsd_decay_style: str = "minus_sqrt"
    lr_wsd_decay_power: float = 2.0
    lr_wsd_decay_points: tuple[tuple[float, float], ...] | None = None

    def rate(self, iteration: int) -> float:
        """The rate of the step that follows `iteration` finished ones, as Megatron counts.

        So the first step of a warmup has rate 0, and the last step of a decay is above `min_lr`.
        """
        if self.lr_warmup_iters > 0 and iteration <= self.lr_warmup_iters:
            return self.lr * iteration / self.lr_warmup_iters
        if self.lr_decay_style == "constant" or self.lr_wsd_decay_iters is None:
            return self.lr
        decayed = iteration - (self.lr_decay_iters - self.lr_wsd_decay_iters)
        if decayed <= 0:
            return self.lr
        share = self._share(min(1.0, decayed / self.lr_wsd_decay_iters))
        return self.min_lr + (self.lr - self.min_lr) * share

    def _share(self, done: float) -> float:
        if self.lr_wsd_decay_style == "power":
            return float((1 - done) ** self.lr_wsd_decay_power)
        if self.lr_wsd_decay_style == "points":
            assert self.lr_wsd_decay_points is not None
            at, heights = zip(*self.lr_wsd_decay_points, strict=True)
            return float(np.interp(done, at, heights))
        return DECAY_SHAPES[self.lr_wsd_decay_style](done)

    def refusal(self) -> str | None:
        """Reason why the schedule is invalid, or None."""
        decay = self.lr_wsd_decay_iters if self.lr_decay_style == "WSD" else 0
        if self.min_lr > self.lr:
            return f"--min-lr {self.min_lr} is above --lr {self.lr}"
        if decay is None:
            return "--lr-decay-style WSD needs --lr-wsd-decay-iters"
        has_points = self.lr_wsd_decay_points is not None
        if decay and (self.lr_wsd_decay_style == "points") != has_points:
            return "--lr-wsd-decay-style points and --lr-wsd-decay-points go together"
        if decay + self.lr_warmup_iters > self.lr_decay_iters:
            return (
                f"--lr-warmup-iters {self.lr_warmup_iters} and --lr-wsd-decay-iters {decay} are "
                f"longer than the run's {self.lr_decay_iters} iterations (--lr-decay-iters)"
            )
        return None


class Learner:
    """The state that changes while training: exactly the content of a checkpoint."""

    def __init__(self, sizes: Sizes, seed: int, weight_decay: float) -> None:
        self.model = CharacterModel(sizes, seed)
        self.optimizer = AdamW(self.model, weight_decay)
        self.batches = np.random.default_rng([seed, 3])
        self.context = sizes.context
        self.iteration = 0
        self.consumed_samples = 0

    def step(self, text: Characters, batch: int, learning_rate: float) -> tuple[float, float]:
        """Train on random windows of the text; returns the loss and the gradient norm."""
        lines = self.batches.integers(0, len(text), (batch, 1))
        starts = self.batches.integers(0, text.shape[1] - self.context, (batch, 1))
        windows = text[lines, starts + np.arange(self.context + 1)]
        loss = self.model.loss_and_gradient(windows)
        gradient = self.model.flat_gradient
        self.iteration += 1
        self.consumed_samples += batch
        self.optimizer.step(learning_rate, self.iteration)
        return loss, math.sqrt(float(gradient @ gradient))
