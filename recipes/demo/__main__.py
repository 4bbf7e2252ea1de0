"""SPEAR end to end on real audio, in minutes on two cores: ``python -m recipes.demo OUT`` (``make demo``).

Fetches real speech and sounds, trains a quantizer on each of two real teachers, encodes the corpora, pre-trains a
tiny student on both domains, probes it next to log-mel and to its untrained self, and writes OUT/report.html.
Interrupted and started again it goes on where it was; each stage's output is in OUT/logs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq2 import init_fairseq2
from rich.console import Console

from recipes.demo.plan import MODEL_NAME, DemoFolders, plan_demo
from recipes.demo.report import Claim, describe_corpora, print_probes, read_results, write_report
from recipes.masked_example import choose_row, draw_example
from slurm.stages import StageError, StageRunner
from spear_plugin.data.codes import CodeStore
from spear_plugin.models.spear import get_spear_model_hub

CLAIMED_TASKS = ("phones", "events")

LOAD_LINES = f"""\
from fairseq2 import init_fairseq2; init_fairseq2()
from fairseq2.models import load_model
model = load_model("{MODEL_NAME}")"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo; return 0 when the student beats log-mel and its untrained self on phones and events."""
    options = _parse(arguments)
    console = Console()
    folders = DemoFolders(options.out.absolute())
    stages = plan_demo(folders, num_steps=options.steps, num_cores=options.cores)
    try:
        seconds = StageRunner(folders.root, options.cores).run(stages)
    except StageError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    card = _write_card(folders)
    init_fairseq2()
    results = read_results(folders)
    claims = results.claims("spear", CLAIMED_TASKS, references=("log_mel", "spear_untrained"))
    write_report(
        folders.report,
        results,
        claims=claims,
        example=draw_example(
            get_spear_model_hub().load_model(MODEL_NAME),
            choose_row(folders.corpora / "speech" / "valid.tsv"),
            CodeStore(folders.codes("speech")),
        ),
        data_rows=describe_corpora(folders),
        seconds={stage.title: seconds[stage.name] for stage in stages},
        load_lines=LOAD_LINES,
    )
    print_probes(console, results)
    _print_end(console, folders, card, claims)
    return 0 if all(claim.holds for claim in claims) else 3


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for everything, about 1.5 GB")
    parser.add_argument("--steps", type=int, default=1000, help="steps of pre-training (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="threads to keep busy")
    return parser.parse_args(arguments)


def _write_card(folders: DemoFolders) -> Path:
    """Write the model's card where fairseq2 looks for the user's own assets: its name is enough to load it."""
    config_folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folder = Path(os.environ.get("FAIRSEQ2_USER_ASSET_DIR") or config_folder / "fairseq2" / "assets")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folders.pretraining / "checkpoints"
    last = max(checkpoints.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    card = folder / f"{MODEL_NAME}.yaml"
    text = (checkpoints / "model.yaml").read_text()
    card.write_text(text.replace("name: checkpoint", f"name: {MODEL_NAME}", 1) + f"checkpoint: {last / 'model'}\n")
    return card


def _print_end(console: Console, folders: DemoFolders, card: Path, claims: Sequence[Claim]) -> None:
    for claim in claims:
        style = "green" if claim.holds else "red"
        console.print(("+ " if claim.holds else "- ") + str(claim), style=style, markup=False, highlight=False)
    console.print(f"\nreport: {folders.report}\ncard:   {card}\n\nLoad the model in Python:\n", highlight=False)
    console.print(LOAD_LINES, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
