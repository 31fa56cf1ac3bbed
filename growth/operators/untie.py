"""untie: a model whose head is its embedding gets a head of its own; the function is preserved."""

from growth.operators.base import Growth, Operator
from growth.operators.registry import Summary, register


@register(
    Summary("`untie`", "gives a model whose head is its embedding a head of its own, which starts as a copy", "yes")
)
def untie() -> Operator:
    """Give a model whose head is its embedding matrix a head of its own, which starts as a copy of the embedding.

    The grown config says `tie_word_embeddings: false`. A model that has such a head keeps it. The source is read as
    the untied model, whichever steps come before: the head grows as that of any untied model does.

    >>> import growth
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    >>> growth.plan(growth.untie(), model).config["tie_word_embeddings"]
    False
    """

    def operator(growth: Growth) -> Growth:
        if not growth.source.tied:
            return growth.noted("untie", True, "the head is a matrix of its own already")
        return growth.with_head(tied=False).noted("untie", True, "the head is a copy of the embedding")

    return operator
