"""widen: more units on one axis, as copies or as fresh units; the function is preserved (docs/design.md, 2.2)."""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from growth.algebra.arithmetic import mean
from growth.algebra.draws import Draws
from growth.algebra.expansion import (
    FRESH,
    Expansion,
    Floats,
    Integers,
    counts,
    layernorm_write,
    rmsnorm_write,
    rotary_places,
    sampled,
    tiled,
)
from growth.algebra.split import MOST_COPIES
from growth.architectures.base import Axis
from growth.architectures.rotary import spread_refusal
from growth.errors import RecipeError
from growth.operators.base import Growth, NewTokens, Operator
from growth.operators.expert_scores import ExpertScores, read_scores, widen_by_scores
from growth.operators.proposals import Candidates, Proposal, Unfit, around, proposing
from growth.operators.registry import Factor, Size, Summary, check_choice, register
from growth.operators.sizes import as_candidates, counted_units, new_units, one_size, other_sizes

Init = Literal["tile", "sample", "pad", "mean", "random"]
Shares = Literal["equal", "random", "mask", "first"]
NormEps = Literal["stock", "rescale"]
RopePairs = Literal["first", "spread"]
Missing = Literal["refuse", "skip"]
DIVERGENCE = {
    "equal": "",
    "random": "; each weight that reads them is divided at random, so that they diverge",
    "mask": "; each weight that reads them goes to one of them, so that they diverge",
    "first": "; only the first of them is read yet, so that they diverge",
}
SILENT_BIAS = -30.0  # bias of a logit that leaves the token exp(-30) = 1e-13 of the probability it would have


@register(
    Summary(
        "`widen` any axis but `vocab`",
        "more units, `to:` a size or by a `factor:`. `init: tile` copies units cyclically, `sample` copies random "
        "units (Net2Net), `pad` adds new units that contribute nothing at first, because either their "
        "incoming or their outgoing weights are zero",
        "yes, at any ratio (1.25, for example), with LayerNorm too; `experts` only at integer ratios, and copied by "
        "`scores` only if equally often",
    ),
    Summary(
        "`widen` `vocab`",
        "more tokens. Their rows start as the mean of the old ones (`init: mean`), as copies (`tile`, `sample`) or at "
        "random (`pad`, `random`)",
        "the logits of the old tokens do not change. The probabilities do, because the new tokens take part in the "
        "softmax, unless `init: mean` and a `logit_bias` of −30 or less exclude them",
    ),
    example={"axis": "ffn", "factor": 1.25},
    check=one_size,
)
def widen(
    axis: StrictStr,
    *,
    to: Size | None = None,
    factor: Factor | None = None,
    multiple: Size | None = None,
    init: Init | None = None,
    shares: Shares | None = None,
    norm_eps: NormEps = "stock",
    rope_pairs: RopePairs = "first",
    logit_bias: Annotated[StrictInt | StrictFloat, Field(ge=-1e4, le=1e4)] | None = None,
    scores: ExpertScores | None = None,
    missing: Missing = "refuse",
    seed: int = 0,
) -> Operator:
    """Grow one axis to a size or by a ratio; the function is preserved.

    axis: `residual`, `ffn`, `heads` (counts query heads; KV heads follow), `queries` (query heads per KV head),
        `head_dim`, `vocab`, and what else a family has (`experts`, `shared_ffn`, `dense_ffn`, `positions`,
        `inner`, `ssm_heads`).
    to, factor, multiple: the new size, a ratio that gives a whole number, or the next multiple (of 64 tokens, say).
    init: `tile` makes cyclic copies; `sample` random copies (Net2Net, Chen et al. 2016); `pad` fresh units that are
        silent on one side (LEMON, Wang et al. 2023). For `vocab` also `mean` (new tokens start as the mean of the old
        ones) and `random`. The default is `mean` for `vocab`, which moves the loss least; `tile` for positions and
        experts, if `shares` is given, and if fresh units could never be trained; and otherwise `pad`, which trains best
        (docs/copies.md).
    shares: how each weight that reads a copied unit is divided among the copies. `equal`: in equal shares, so that the
        copies stay identical. `random`: in random parts, different for each weight, which add up to it exactly.
        `mask`: each weight goes to one copy. `first`: all of them go to the first copy, and the others are written but
        not yet read; nothing is rounded. The default is `random`.
    norm_eps: if a norm runs over the axis, `stock` scales the weights that write the axis, so that the mean square in
        the norm and the eps in the config do not change; `rescale` does not scale the stream and changes the gain and
        eps instead, which rounds the fewest values.
    rope_pairs: where the old rotary pairs of `head_dim` go. `first`: before the fresh ones; where RoPE covers the whole
        head, the rotary base grows with it, and otherwise fresh channels are not rotary. `spread`: at a head m times as
        large (m whole), old pair k becomes pair k·m, which has its frequency at the same base, and fresh pairs lie
        between; where RoPE covers a part of the head, that part grows by m too.
    logit_bias: the bias of the new tokens' logits; for `vocab` with `init: mean`, `random` or `pad`, if the head has
        biases. With `mean`, a value of -30 or less leaves the new tokens no probability.
    scores: for `experts`: a number from 0 on for each, or the name of a JSON file with a list of such numbers for each
        layer, which are added (`ExpertUtility.save` writes one). Each new expert copies the one with the highest score
        per copy (Expert Upcycling, Dwivedi et al. 2026, arXiv 2604.19835, duplicates by utility too). Lossy, unless all
        experts are copied equally often. The number of experts for each token grows as that of experts does, rounded
        down; state `num_experts_per_tok` with `configure` to leave it as it is.
    missing: what happens if the family does not have the axis. `refuse` is an error; `skip` changes nothing, so that a
        recipe applies to families with and without the axis.
    seed: the random seed of `init: sample`.

    Raises (when applied):
        RecipeError: an unknown axis, a smaller or impossible size, an argument that does not apply.

    >>> import growth
    >>> plan = growth.plan(growth.widen("ffn", factor=1.25), "examples/phi-mini")
    >>> plan.preserving, plan.config["intermediate_size"]
    (True, 640)
    """

    def apply(
        growth: Growth,
        /,
        to: int | None,
        factor: float | None,
        multiple: int | None,
        init: Init | None,
        shares: Shares | None,
        rope_pairs: RopePairs,
        logit_bias: float | None,
    ) -> Growth:
        check_choice("widen", missing=(missing, Missing))
        if missing == "skip" and axis not in growth.axes:
            return growth
        new = new_units(growth, axis, to, factor, multiple)
        traits, old = growth.axis(axis), growth.sizes[axis]
        spread = rope_pairs == "spread"
        default = "pad" if spread else default_init(traits, old, copies=shares is not None)
        chosen = default if init is None else init
        divided = default_shares(traits, chosen) if shares is None else shares
        check_choice("widen", init=(chosen, Init), shares=(divided, Shares), norm_eps=(norm_eps, NormEps))
        check_choice("widen", rope_pairs=(rope_pairs, RopePairs))
        _check_arguments(traits, chosen, divided, norm_eps)
        _check_logit_bias(axis, chosen, logit_bias)
        label, counted = counted_units(growth, axis)
        change = f"{label} from {counted} to {counted * new // old}"
        what = f"widen {label} {counted} → {counted * new // old}, {chosen}{', rotary pairs spread' if spread else ''}"
        if new == old:
            return growth.noted(what, True, "nothing changes")
        if scores is not None:
            if chosen != "tile":
                raise Unfit(f"Cannot widen {change} by {chosen} with scores: new experts are copies.", *_inits("tile"))
            return widen_by_scores(growth, axis, new, read_scores(scores))
        _check_size(growth, axis, new, chosen, change)
        stride = _rope_stride(growth, axis, new, chosen, change) if spread else 1
        expansion, why = _expansion(traits, old, new, chosen, seed, stride)
        if divided == "first":
            expansion = expansion.read_from_first()
        if traits.norm and norm_eps == "stock" and not traits.unscaled:
            expansion = expansion.scaled(_mean_square_factor(expansion))
        grown = replace(growth.expanded(axis, expansion), rope_stride=growth.rope_stride * stride)
        if divided == "random" or divided == "mask":
            grown = grown.split(divided, axis)
        _check_unread(grown.expansions[axis], axis)
        why += DIVERGENCE[grown.splits.get(axis, divided)]
        if axis != "vocab":
            return grown.noted(what, True, why)
        silent, share = _probability(chosen, logit_bias)
        tokens = NewTokens(chosen == "mean", logit_bias)
        return replace(grown, tokens=tokens).noted(what, silent, f"{why}; {share}", adds_tokens=not silent)

    return proposing(
        apply,
        to=to,
        factor=factor,
        multiple=multiple,
        init=init,
        shares=shares,
        rope_pairs=rope_pairs,
        logit_bias=logit_bias,
    )


def default_init(axis: Axis, size: int, *, copies: bool = False) -> Init:
    """Return the default `init` of an axis.

    size: of the axis before the step. copies: whether the new units must be copies.
    """
    if axis.name == "vocab":
        return "mean"
    return "tile" if copies or axis.external or axis.equal_copies or _never_trained(axis, size) else "pad"


def default_shares(axis: Axis, init: Init) -> Shares:
    """Return the default `shares` of an axis, under which its copies diverge."""
    return "random" if init in ("tile", "sample") and not axis.external else "equal"


def _never_trained(axis: Axis, size: int) -> bool:
    """Whether fresh units would have weights that never get a gradient, and copies can take their place."""
    return bool(axis.untrained) and axis.uncopyable < size


# ------------------------------------------------- arguments that do not apply


def _check_arguments(axis: Axis, init: str, shares: str, norm_eps: str) -> None:
    if init in ("mean", "random") and axis.name != "vocab":
        raise Unfit(f"widen {axis.name}: init: {init} is for vocab.", *_inits("tile", "sample", "pad"))
    if shares != "equal" and (init == "pad" or axis.external):
        raise RecipeError(
            f"widen {axis.name}: shares: {shares} needs copies that share a signal, and init: {init} makes none on "
            "this axis. Leave out shares."
        )
    if norm_eps == "rescale" and (axis.norm is None or axis.own_eps):
        stated = " with an eps that the config states" * axis.own_eps
        raise RecipeError(
            f"widen {axis.name}: norm_eps: rescale needs an axis that a norm runs over{stated}, such as residual. "
            "Leave out norm_eps."
        )


def _check_logit_bias(axis: str, init: str, logit_bias: float | None) -> None:
    if logit_bias is None:
        return
    if axis != "vocab":
        raise RecipeError(
            f"widen {axis}: logit_bias is the bias of new tokens and needs axis: vocab. Leave out logit_bias."
        )
    if init in ("tile", "sample"):
        raise Unfit(
            f"widen vocab: copies (init: {init}) have the biases of the tokens that they copy.",
            *_inits("mean", "random"),
            [Proposal({"logit_bias": None})],
        )


def _check_unread(grown: Expansion, axis: str) -> None:
    """Refuse several copies of a unit that nothing reads: they would have equal gradients for ever."""
    unread = np.where((grown.read == 0) & ~grown.fresh, grown.source, FRESH)
    most = int(counts(unread, grown.size).max(initial=0))
    if most > 1:
        raise Unfit(
            f"widen {axis}: {most} copies of a unit would not be read, so they would stay equal in training; shares: "
            "first is for one copy of each unit.",
            *([Proposal({"shares": shares})] for shares in ("random", "mask")),
            *_inits("pad"),
        )


def _rope_stride(growth: Growth, name: str, new: int, init: str, change: str) -> int:
    """Return the m by which old rotary pair k becomes pair k * m at the same rotary base.

    Raises:
        RecipeError: there are no rotary pairs, the ratio is not whole, or the frequencies depend on more than their
            share of a pair.
    """
    axis = growth.axis(name)
    if not axis.rotary_pairs:
        raise RecipeError(
            f"Cannot widen {change} with rope_pairs: spread: only channels of heads with rotary embeddings form rotary "
            "pairs. Leave out rope_pairs."
        )
    refusal = spread_refusal(growth.source.config) or (axis.one_stride and f"{axis.one_stride} Leave out rope_pairs.")
    if refusal:
        raise RecipeError(f"Cannot widen {change} with rope_pairs: spread: {refusal}")
    if init != "pad":
        raise Unfit(
            f"Cannot widen {change} by {init} with rope_pairs: spread: the pairs between the old ones have other "
            "frequencies, so none can be a copy.",
            *_inits("pad"),
        )
    if new % axis.size:
        raise Unfit(
            f"Cannot widen {change} with rope_pairs: spread: old pair k becomes pair k·m of a head m times as large, "
            f"so m must be whole, and {new} / {axis.size} = {new / axis.size:g}.",
            *as_candidates(around(axis.size, new, axis.size)),
            [Proposal({"rope_pairs": "first"})],
        )
    return new // axis.size


def _inits(*inits: Init) -> tuple[Candidates, ...]:
    return tuple([Proposal({"init": init}), Proposal({"init": init, "shares": None})] for init in inits)


def _check_size(growth: Growth, name: str, new: int, init: Init, change: str) -> None:
    axis, old = growth.axis(name), growth.sizes[name]
    wanted = new * counted_units(growth, name)[1] // old
    if axis.rotary_pairs and not axis.partly_rotary and (new - old) % 2:
        raise Unfit(f"Cannot widen {change}: rotary channels come in pairs.", *other_sizes(growth, name, wanted))
    if init in ("tile", "sample") and new > old * MOST_COPIES:
        raise Unfit(f"Cannot widen {change} by {init}: at most {MOST_COPIES:,} copies of a unit.", *_inits("pad"))
    if axis.equal_copies and (init != "tile" or new % old):
        same = ([Proposal({"init": "tile", "to": wanted})],)
        others = other_sizes(growth, name, wanted) if new % old else same
        raise Unfit(f"Cannot widen {change} by {init}: {axis.equal_copies}", *others)
    if init in ("tile", "sample") and axis.single:
        raise Unfit(f"Cannot widen {change} by {init}: {axis.single}", *_inits("pad"))
    if init in ("tile", "sample") and axis.unscaled and (init != "tile" or new % old):
        raise Unfit(
            f"Cannot widen {change} by {init}: {axis.unscaled}",
            *(as_candidates(around(old, wanted, old)) if init == "tile" else _inits("tile")),
            *_inits("pad"),
        )
    if init == "pad" and _never_trained(axis, old):
        raise Unfit(f"Cannot widen {change} by pad: {axis.untrained}", *_inits("tile"))
    if init in ("tile", "sample") and axis.uncopyable >= old:
        single = "query heads have slopes of their own (ALiBi)"
        if axis.rotary_pairs:
            single = f"{old} channels of a head are rotary"
        raise Unfit(f"Cannot widen {change} by {init}: all {single}, so none can be copied.", *_inits("pad"))


# ------------------------------------------------- expansions, and why they preserve the function


def _expansion(axis: Axis, old: int, new: int, init: Init, seed: int, rope_stride: int) -> tuple[Expansion, str]:
    if init in ("pad", "mean", "random"):
        return _outer_padding(axis, old, new, init) if axis.external else _padding(axis, old, new, rope_stride)
    source = _copied(axis, old, new, init, seed)
    return _outer_copies(axis, old, source) if axis.external else _copies(axis, old, source)


def _outer_padding(axis: Axis, old: int, new: int, init: Init) -> tuple[Expansion, str]:
    source = Expansion.padding(old, new, silent="read").source
    known = np.where(source == FRESH, 0.0, 1.0) if init == "mean" else np.ones(new)
    start = "the mean of the old" if init == "mean" else "random"
    return Expansion(old, source, known, known), f"new {axis.name} rows are {start}; the old ones are unchanged"


def _padding(axis: Axis, old: int, new: int, rope_stride: int) -> tuple[Expansion, str]:
    why = "fresh units are computed, and nothing reads them yet"
    if axis.last_first:
        last = new - old + np.arange(old)
        return Expansion.padding(old, new, silent="read", places=last), f"{why}; they precede the old ones"
    if axis.norm:
        why = "fresh units are written as zero, and the norm gives every old unit its old value"
        why += f"; {axis.untrained.rstrip('.')}" if axis.untrained else ""
    if rope_stride > 1:
        why += f"; old rotary pair k is pair {rope_stride}k, which has the same frequency at the same rotary base"
    places = _rotary_head(axis, old, new, rope_stride) if axis.rotary_pairs else None
    return Expansion.padding(old, new, silent="write" if axis.norm else "read", places=places), why


def _rotary_head(axis: Axis, old: int, new: int, rope_stride: int) -> Integers:
    """Return where the channels of a head go: the rotary ones by their pairs, and the others after all of these."""
    rotary = axis.rotary_channels(new, rope_stride)
    pairs = rotary_places(axis.fixed, rotary, halves=axis.rotary_pairs == "halves", stride=rope_stride)
    return np.concatenate([pairs, rotary + np.arange(old - axis.fixed)])


def _copied(axis: Axis, old: int, new: int, init: Init, seed: int) -> Integers:
    pairs = axis.norm == "layer"
    if init == "tile":
        return tiled(old, new, fixed=axis.uncopyable, pairs=pairs)
    units = Draws(seed, f"{axis.name}/sample").integers(axis.uncopyable, old, new - old)
    return sampled(old, units, pairs=pairs)


def _outer_copies(axis: Axis, old: int, source: Integers) -> tuple[Expansion, str]:
    why = f"new {axis.name} rows are copies; the old ones are unchanged"
    if axis.equal_copies:
        ratio = len(source) // old
        why = (
            f"a token goes to {ratio} times as many {axis.name}, all copies of those it went to, and they are averaged"
        )
    return Expansion(old, source, np.ones(len(source)), np.ones(len(source))), why


def _copies(axis: Axis, old: int, source: Integers) -> tuple[Expansion, str]:
    write: Floats | None = None
    why = "copies compute the same, and their readers share them"
    if axis.norm == "rms":
        write = rmsnorm_write(source, old)
        why = "copies share their signal so that the RMSNorm gives every unit its old weight"
    if axis.norm == "layer":
        write = layernorm_write(source, old)
        why = "copies share their signal so that the LayerNorm gives every unit its old mean and weight"
    return Expansion.copies(old, source, write), why


def _mean_square_factor(expansion: Expansion) -> float:
    """Return the factor on what is written under which a norm has its old mean square; 1 for whole ratios."""
    energy = mean(expansion.per_unit(expansion.write**2))
    return float(np.sqrt(len(expansion) / expansion.size / energy))


def _probability(init: Init, logit_bias: float | None) -> tuple[bool, str]:
    """Return whether new tokens leave the old ones their probability, and in words what they take.

    A mean row has the mean of the old logits, and exp is convex: k such tokens among V take at most k / V of what the
    old ones have together, times exp(logit_bias). What random rows take is known only when the model is run.
    """
    if init == "mean" and logit_bias is not None and logit_bias <= SILENT_BIAS:
        return True, "their bias leaves them no probability"
    shares = {"mean": "a small share", "tile": "as much as those they copy", "sample": "as much as those they copy"}
    return False, f"they take probability from the old ones: {shares.get(init, 'how much is left to chance')}"
