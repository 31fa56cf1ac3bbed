"""StarCoder2: Llama's layers with LayerNorms, a plain MLP and biases, and a tied head."""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import BASE, LAYER, Norms, mlp
from growth.architectures.config import Config, flag
from growth.architectures.families.llama import decoder


@family
def starcoder2(config: Config) -> Architecture:
    """Return the table of a StarCoder2."""
    bias = flag(config, "use_bias", True)
    return decoder(
        config,
        bias=(bias, bias),
        default_kv=2,
        default_tied=True,
        bases=BASE,
        norms=Norms(kind="layer", bias=True, eps="norm_epsilon", eps_default=1e-5),
        mlp=mlp(f"{LAYER}.mlp.c_fc", f"{LAYER}.mlp.c_proj", bias=bias),
    )
