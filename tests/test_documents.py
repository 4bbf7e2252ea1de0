"""Code in the documents does what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch._dynamo
from torch.nn import Module

ROOT = Path(__file__).parents[1]

SPEAR, SPIDR = "get_spear_model_hub()", "get_spidr_model_hub()"

# Models that are downloaded or made by the demo; any of the family will do. fairseq2 is initialized once a process.
REPLACED = {
    f'{SPEAR}.load_model("spear_demo")': f'{SPEAR}.create_new_model({SPEAR}.get_arch_config("tiny"))',
    f'{SPIDR}.load_model("spidr_base")': f'{SPIDR}.create_new_model({SPIDR}.get_arch_config("tiny"))',
    "layer=6": "layer=4",
    "\ninit_fairseq2()\n": "\n",
}


def test_the_code_of_the_page_on_inference_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "inference.md").read_text(), flags=re.M | re.S)
    # The last one needs a file that takes minutes to make; tests/recipes/test_export.py does the same.
    assert "import onnxruntime" in blocks[-1]
    code = "\n".join(blocks[:-1])
    for text, replacement in REPLACED.items():
        assert text in code
        code = code.replace(text, replacement)
    names: dict[str, Any] = {}
    with torch._dynamo.config.patch(disable=True):  # compiling takes a minute
        exec(compile(code, "docs/inference.md", "exec"), names)
    assert isinstance(names["model"], Module)
    assert names["features"].last.shape == (2, 96, 128)
    assert names["spidr_features"].lengths.tolist() == [2499]
    assert names["units"].shape == names["probabilities"].shape[:2] == (2, 99)
