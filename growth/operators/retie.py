"""retie: one matrix becomes embedding and head of a model that stores two equal ones; the function is preserved."""

from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.registry import Summary, register


@register(
    Summary(
        "`retie`",
        "makes the embedding the head too, where the source stores two equal matrices",
        "yes; refused if the two differ",
    )
)
def retie() -> Operator:
    """Make the embedding matrix the head too, where the source stores a head that holds the same values.

    The grown config says `tie_word_embeddings: true`. The two stored matrices are compared before anything is written,
    and the growth is refused if a bit differs. A tied model stays tied.

    Raises (when applied):
        RecipeError: an earlier step has grown an axis that the tied model cannot grow.

    >>> import growth
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False))
    >>> found = model.lm_head.load_state_dict(model.model.embed_tokens.state_dict())
    >>> growth.plan(growth.retie(), model).config["tie_word_embeddings"]
    True
    """

    def operator(growth: Growth) -> Growth:
        if growth.source.tied:
            return growth.noted("retie", True, "the head is the embedding already")
        tied = growth.with_head(tied=True)
        if not tied.source.tied:
            raise RecipeError(
                f"retie: the stock class of a {tied.source.model_type} has a head of its own whatever "
                "tie_word_embeddings is. Leave out retie."
            )
        for name, axis in tied.axes.items():
            old, new = axis.size, growth.sizes[name]
            if axis.refusal and new > max(old, axis.max_size):
                raise RecipeError(
                    f"retie: {name} has grown from {old} to {new}, and cannot with a tied head: "
                    f"{axis.refusal} Or leave out retie."
                )
        return tied.noted(
            "retie", True, "embedding and head hold the same values, which is checked before anything is written"
        )

    return operator
