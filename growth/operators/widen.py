"""widen: more units on one axis, by copies or by fresh units, the function kept (docs/design.md, 2.2)."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from growth.algebra.arithmetic import mean
from growth.algebra.draws import Draws
from growth.algebra.expansion import (
    FRESH,
    Expansion,
    Floats,
    Integers,
    layernorm_write,
    random_shares,
    rmsnorm_write,
    sampled,
    tiled,
)
from growth.architectures.base import Axis
from growth.errors import RecipeError
from growth.operators.base import Growth, NewTokens
from growth.operators.sizes import Operator, grown_size

Init = Literal["tile", "sample", "pad", "mean", "random"]
Shares = Literal["equal", "random"]
NormEps = Literal["stock", "rescale"]
SPREAD = 0.25  # of random shares, relative to the equal share
QUIET = -30.0  # bias of a logit that leaves the token exp(-30) = 1e-13 of the probability it would have


def widen(
    axis: str,
    *,
    to: int | None = None,
    factor: float | None = None,
    multiple: int | None = None,
    init: Init | None = None,
    shares: Shares = "equal",
    norm_eps: NormEps = "stock",
    logit_bias: float | None = None,
    seed: int = 0,
) -> Operator:
    """An operator that grows `axis` to a size or by a ratio; the function is preserved at any ratio.

    axis: residual, ffn, heads (counts query heads; key-value groups follow), queries (query heads of a
        group), head_dim, vocab, experts (whole ratios only), positions (learned), and what else the family has.
    to, factor, multiple: one of them: a size, a ratio, or the next multiple (of 64 tokens, say).
    init: `tile` cyclic copies, in few long runs; `sample` random copies (Net2Net, Chen et al. 2016);
        `pad` fresh units that are silent on one side (LEMON, Wang et al. 2023). For vocab, `mean` starts new
        tokens as the mean of the old ones, `random` (or `pad`) at random. By default `mean` for vocab, which
        moves the loss least, and `tile` for every other axis.
    shares: what the readers take from each copy; `random` shares differ, so that copies can part ways.
    norm_eps: where the axis passes a norm: `stock` scales what writes it, so that the norm's mean square
        and the config's eps stay; `rescale` keeps what is written and changes gain and eps.
    logit_bias: for vocab, the bias of the new tokens' logits, where the head has biases; not with copies.
    seed: of `sample` and of random shares.

    Raises (when applied):
        RecipeError: an unknown axis, a smaller or impossible size, an argument that does not apply.
    """
    chosen: Init = init if init is not None else "mean" if axis == "vocab" else "tile"

    def operator(growth: Growth) -> Growth:
        name, new = resolve(growth, axis, to, factor, multiple)
        old = growth.sizes[name]
        what = f"widen {axis} {old_count(growth, axis)} → {old_count(growth, axis) * new // old}, {chosen}"
        traits = growth.axes[name]
        _check_arguments(traits, chosen, shares, norm_eps)
        _check_logit_bias(name, chosen, logit_bias)
        if traits.halves and (new - old) % 2:
            raise RecipeError(f"Cannot widen {axis} from {old} to {new}: its units turn in pairs. Nearest: {new + 1}.")
        if new == old:
            return growth.noted(what, True, "nothing changes")
        if traits.alike and (chosen != "tile" or new % old):
            raise RecipeError(
                f"Cannot widen {axis} from {old} to {new} by {chosen}: {traits.alike} Use init: tile and to: "
                f"{old * max(2, new // old)}."
            )
        if chosen in ("pad", "mean", "random"):
            expansion, why = _padding(traits, old, new, chosen)
        else:
            source = _copied(traits, old, new, chosen, seed)
            expansion, why = _copies(traits, old, source)
        if shares == "random":
            expansion = expansion.with_shares(
                random_shares(expansion.source, old, Draws(seed, f"{name}/shares").uniform(new), SPREAD)
            )
            why += "; unequal shares tell them apart"
        if traits.norm and norm_eps == "stock":
            expansion = expansion.scaled(_mean_square_kept(expansion))
        if name != "vocab":
            return growth.expanded(name, expansion).noted(what, True, why)
        growth = replace(growth, tokens=NewTokens(chosen == "mean", logit_bias)).expanded(name, expansion)
        quiet, share = _probability(chosen, logit_bias)
        return growth.noted(what, quiet, f"{why}; {share}", adds_tokens=not quiet)

    return operator


def old_count(growth: Growth, axis: str) -> int:
    """The size of an axis as its users count it: heads are query heads."""
    sizes = growth.sizes
    return sizes["heads"] * sizes["queries"] if axis == "heads" else sizes[axis]


def resolve(
    growth: Growth, axis: str, to: int | None, factor: float | None, multiple: int | None = None
) -> tuple[str, int]:
    """The axis that is meant and its new size in its own units.

    Raises:
        RecipeError: no such axis, a smaller size, or query heads that are no whole KV groups.
    """
    if axis == "rotary":
        raise RecipeError(
            "Cannot widen rotary channels: their number sets the frequencies at which all of them turn, so the "
            "function would change. Widen heads, or head_dim (its new channels do not turn)."
        )
    if axis not in growth.axes:
        raise RecipeError(f"Cannot widen '{axis}': this family has {', '.join(growth.axes)}.")
    new = grown_size(axis, old_count(growth, axis), to, factor, multiple)
    queries = growth.sizes["queries"] if axis == "heads" else 1
    traits = growth.axes[axis]
    if traits.refusal and new != old_count(growth, axis) and new > traits.upto * queries:
        raise RecipeError(f"Cannot widen {axis} from {old_count(growth, axis)} to {new}: {traits.refusal}")
    if new % queries:
        low = new - new % queries
        raise RecipeError(
            f"Cannot widen heads from {old_count(growth, axis)} to {new}: a KV group holds {queries} query heads "
            f"and {new} is not a multiple of {queries}. Nearest: {low} or {low + queries}."
        )
    return axis, new // queries


def _check_arguments(axis: Axis, init: str, shares: str, norm_eps: str) -> None:
    for name, value, known in (("init", init, Init), ("shares", shares, Shares), ("norm_eps", norm_eps, NormEps)):
        if value not in get_args(known):
            raise RecipeError(f"widen has no {name} '{value}': use one of {', '.join(get_args(known))}.")
    if init in ("mean", "random") and axis.name != "vocab":
        raise RecipeError(f"widen {axis.name}: init: {init} is for vocab. Use tile, sample or pad.")
    if shares == "random" and (init == "pad" or axis.outer):
        raise RecipeError(f"widen {axis.name}: shares: random needs copies that share a signal; here there are none.")
    if norm_eps == "rescale" and axis.norm is None:
        raise RecipeError(f"widen {axis.name}: norm_eps: rescale needs an axis that passes a norm, such as residual.")


def _check_logit_bias(axis: str, init: str, logit_bias: float | None) -> None:
    if logit_bias is None:
        return
    if axis != "vocab":
        raise RecipeError(f"widen {axis}: logit_bias is of new tokens: it needs axis: vocab.")
    if init in ("tile", "sample"):
        raise RecipeError(
            f"widen vocab: copies (init: {init}) have the biases of the tokens that they copy. Use init: mean or "
            "random, or leave out logit_bias."
        )


def _probability(init: Init, logit_bias: float | None) -> tuple[bool, str]:
    """Whether added tokens leave the others their probability, and in words what they take.

    A mean row has the mean of the old logits, and exp is convex: k such tokens among V take at most k / V of what the
    old ones have together, times exp(logit_bias). Of random rows nothing can be said before they are run.
    """
    if init == "mean" and logit_bias is not None and logit_bias <= QUIET:
        return True, "their bias leaves them no probability"
    shares = {"mean": "a small share", "tile": "as much as those they copy", "sample": "as much as those they copy"}
    return False, f"they take probability from the old ones: {shares.get(init, 'how much is left to chance')}"


def _padding(axis: Axis, old: int, new: int, init: Init) -> tuple[Expansion, str]:
    if axis.outer:
        source = Expansion.padding(old, new, silent="read").source
        known = np.where(source == FRESH, 0.0, 1.0) if init == "mean" else np.ones(new)
        start = "the mean of the old" if init == "mean" else "random"
        return Expansion(old, source, known, known), f"new {axis.name} rows are {start}; the old ones are unchanged"
    if axis.untrained and axis.fixed < old:
        raise RecipeError(f"Cannot widen {axis.name} from {old} to {new} by pad: {axis.untrained} Use init: tile.")
    if axis.norm:
        why = "fresh units are written as zero, and the norm allows for it"
        why += f"; {axis.untrained.rstrip('.')}" if axis.untrained else ""
        return Expansion.padding(old, new, silent="write", halves=axis.halves), why
    return Expansion.padding(old, new, silent="read", halves=axis.halves), "fresh units are computed and not yet read"


def _copied(axis: Axis, old: int, new: int, init: Init, seed: int) -> Integers:
    pairs = axis.norm == "layer"
    if axis.fixed >= old:
        single, instead = ("heads have slopes of their own (ALiBi)", "")
        if axis.name == "head_dim":
            single, instead = ("channels of a head turn (rotary)", ", or widen heads")
        raise RecipeError(f"widen {axis.name}: all {old} {single}, so none can be copied. Use init: pad{instead}.")
    if init == "tile":
        return tiled(old, new, fixed=axis.fixed, pairs=pairs)
    drawn = Draws(seed, f"{axis.name}/sample").integers(axis.fixed, old, new - old)
    return sampled(old, drawn, pairs=pairs)


def _copies(axis: Axis, old: int, source: Integers) -> tuple[Expansion, str]:
    if axis.outer:
        ones = np.ones(len(source))
        why = f"new {axis.name} rows are copies; the old ones are unchanged"
        if axis.alike:
            why = f"{axis.name} are chosen together with their copies, as many times as many, and averaged"
        return Expansion(old, source, ones, ones), why
    write: Floats | None = None
    why = "copies compute the same, and their readers share them"
    if axis.norm == "rms":
        write = rmsnorm_write(source, old)
        why = "copies share their signal so that the RMSNorm sees every unit with its old weight"
    if axis.norm == "layer":
        write = layernorm_write(source, old)
        why = "copies share their signal so that the LayerNorm sees every unit with its old mean and weight"
    return Expansion.copies(old, source, write), why


def _mean_square_kept(expansion: Expansion) -> float:
    """The factor on what is written under which a norm sees its old mean square; 1 for whole ratios."""
    energy = mean(expansion.per_unit(expansion.write**2))
    return float(np.sqrt(len(expansion) / expansion.size / energy))
