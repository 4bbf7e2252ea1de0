"""Lets the checkers of benchmarks look at our interfaces; runs in .venv-checkers, called by test_benchmark_checkers.

Arguments: runs of SPEAR and SpidR, a folder with the CSV files of a task of s3prl for each, and a file for JSON: what
each checker said of each run, ``passed`` or its error; and what s3prl says of a run that does not exist.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hearvalidator import validate
from xares.audio_encoder_checker import check_audio_encoder
from xares.utils import attr_from_py_path

from spear_plugin.interfaces import s3prl


def check_hear(checkpoint: str) -> None:
    options = ["spear_plugin.interfaces.hear", "--model", checkpoint, "--device", "cpu"]
    with mock.patch.object(sys, "argv", ["hear-validator", *options]):
        validate.main()


def check_xares(checkpoint: str) -> None:
    # As `python -m xares.run spear_plugin/interfaces/xares.py ...` does.
    create_encoder = attr_from_py_path("spear_plugin/interfaces/xares.py", endswith="Encoder")
    with mock.patch.dict("os.environ", {"SPEAR_PLUGIN_CHECKPOINT": checkpoint}):
        if not check_audio_encoder(create_encoder()):
            raise ValueError("X-ARES refuses the encoder, see above.")


def check_s3prl(checkpoint: str, task: Path) -> None:
    steps = 10
    options = {
        "target_dir": task,
        "cache_dir": task / "cache",
        "start": 1,
        "device": "cpu",
        "num_workers": 0,
        "prepare_data.dataset_root": "none",
        **{f"build_dataset.{split}.max_secs": 1.0 for split in ("train", "valid", "test")},
        "build_upstream.name": s3prl.UPSTREAM,
        "build_upstream.path_or_url": checkpoint,
        "build_optimizer.conf.lr": 0.01,
        "train.total_steps": steps,
        "train.log_step": steps,
        "train.eval_step": steps,
        "train.save_step": steps,
        "train.gradient_accumulate": 1,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with mock.patch.object(sys, "argv", ["s3prl-main", "SuperbSID", *arguments]):
        s3prl.main()


def judge(check: Callable[..., None], *arguments: object) -> str:
    try:
        check(*arguments)
    except BaseException as ex:
        return f"{type(ex).__name__}: {ex}"
    return "passed"


def main(spear: str, spidr: str, task: str, out: str) -> None:
    results = {}
    for family, checkpoint in (("spear", spear), ("spidr", spidr)):
        results[f"hear {family}"] = judge(check_hear, checkpoint)
        results[f"xares {family}"] = judge(check_xares, checkpoint)
        results[f"s3prl {family}"] = judge(check_s3prl, checkpoint, Path(task) / family)
    results["s3prl nothing"] = judge(check_s3prl, "nothing", Path(task) / "spear")
    Path(out).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
