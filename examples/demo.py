"""Grow phi-mini by the ratios of Phi-1.5 -> Phi-2, prove it, and let both models write the same text.

make demo        (or: python examples/demo.py --output out/demo)
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

SOURCE = Path(__file__).parent / "phi-mini"
PROMPT = "import os\nimport sys\n\ndef "
NEW_TOKENS = 60
console = Console()


def growth(*arguments: object) -> None:
    """Run a command as a user would type it, and show it."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold cyan]$ growth {' '.join(words)}[/]")
    sys.stdout.flush()
    subprocess.run(["growth", *words], check=True)


def show_continuations(source: Path, grown: Path) -> None:
    """The text that both models write after the same prompt."""
    import transformers

    from growth.verification.tokens import sample

    transformers.logging.disable_progress_bar()
    texts = [sample(folder, PROMPT, NEW_TOKENS) for folder in (source, grown)]
    for name, text in zip(("source", "grown"), texts, strict=True):
        console.print(
            Panel(
                Syntax(PROMPT + text, "python", background_color="default"),
                title=f"{name}: its continuation of {PROMPT!r}",
                width=88,
            )
        )
    assert texts[0] == texts[1], "the two models write different texts"
    console.print("The two texts are the same.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/demo"))
    output = parser.parse_args().output
    if output.exists():
        parser.error(f"{output} exists already: remove it, or choose another --output.")

    console.rule("What would happen")
    growth("plan", "phi-mini", "--source", SOURCE)

    console.rule("Exact: the same numbers in float64")
    growth("grow", "phi-mini", "--source", SOURCE, "--output", output / "grown-float64", "--dtype", "float64")
    growth("verify", SOURCE, output / "grown-float64", "--dtype", "float64")

    console.rule("In practice: stored in float16, as the source is")
    report = output / "report.html"
    growth("grow", "phi-mini", "--source", SOURCE, "--output", output / "grown")
    growth("verify", SOURCE, output / "grown", "--dtype", "float64", "--report", report)

    console.rule("The same text")
    show_continuations(SOURCE, output / "grown")
    console.print(f"\nA picture of it all: [bold]{report}[/]")


if __name__ == "__main__":
    main()
