"""Run the blocks of a page of the docs, one after the other, in this folder: python run_page.py PAGE.

Python blocks share their names, as they would in a notebook. Console blocks are scripts of bash: `$ ` begins a command,
and lines below it are its output, in which … stands for anything. A block below "`path`:" is a file. YAML that is not a
file is a recipe or a schedule, which is validated.

A block is not run if the line above it says so, and why: "*The tests do not run this block: …*", or "*The tests run
this block where PACKAGE is installed.*" and it is not. Nor are commands that install growth itself, which the tests have
done.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`([\w./-]+\.\w+)`:\n\n\Z")
NOT_RUN = re.compile(r"^\*The tests do not run this block(?: as it stands)?: ([^*]+)\*\n\n\Z", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"^\*The tests run this block where (\w+) is installed\.\*\n\n\Z", re.MULTILINE)
INSTALLS = ("pip install", "git clone", "make ", "pre-commit ", ". .venv")
END = "\x1e"  # behind the output of each command


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, the line above it, its file's name, and why it is not run."""

    kind: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""


def blocks(page):
    """The blocks of a page in order."""
    for found in BLOCK.finditer(page):
        above = page[: found.start()]
        file, reason, needed = FILE.search(above), NOT_RUN.search(above[-400:]), NEEDS.search(above[-400:])
        not_run = " ".join(reason[1].split()) if reason else ""
        if needed and find_spec(needed[1]) is None:
            not_run = f"{needed[1]} is not installed"
        yield Block(found["kind"], found["text"], above.count("\n") + 1, file[1] if file else "", not_run)


def commands(text):
    """(command, expected output) for each command of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        if not command.startswith(INSTALLS):
            yield command, output


def run_console(block):
    """Run the commands of a block in one shell; compare what they print with what the page shows."""
    stated = list(commands(block.text))
    script = "\n".join(f"{command}\nprintf '{END}'" for command, _ in stated)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"line {block.line}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    for (command, expected), printed in zip(stated, done.stdout.split(END), strict=False):
        lines = [r"\s+".join(map(re.escape, line.split())) for line in expected.splitlines() if line.strip()]
        if not re.search(r"\s+".join(lines).replace("…", ".*?"), printed, re.DOTALL):
            sys.exit(f"line {block.line}: {command}\nis said to print\n{expected}\nand prints\n{printed}")


def run(block, names):
    """Do what a block is for."""
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    elif block.kind == "python":
        exec(compile("\n" * block.line + block.text, "page", "exec"), names)
    elif block.kind == "console":
        run_console(block)
    elif block.kind == "yaml":
        from growth.planning.recipe import parse_recipe
        from growth.training.schedule import parse_schedule

        parse = parse_schedule if "\nstages:" in f"\n{block.text}" else parse_recipe
        parse(block.text, f"the block at line {block.line}")


def main():
    """Run the page that the arguments name."""
    names = {"__name__": "__main__"}
    for block in blocks(Path(sys.argv[1]).read_text()):
        if not block.not_run:
            print(f"line {block.line}: {block.kind}", flush=True)
            run(block, names)


if __name__ == "__main__":
    main()
