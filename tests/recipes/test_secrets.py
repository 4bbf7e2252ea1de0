from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from recipes.secrets import HiddenSecrets
from tests.recipes.common import PretrainRunner
from tests.recipes.test_spear_pretrain import SHORT_RUN


def filtered(environment: dict[str, str], message: str) -> str:
    record = logging.LogRecord("fairseq2", logging.INFO, "", 0, message, None, None)
    assert HiddenSecrets(environment).filter(record)
    return record.getMessage()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "db_password", "AWS_SECRET_ACCESS", "PRIVATE_X", "KEY_1"]
)
def test_values_of_secrets_are_replaced_wherever_they_stand(name: str) -> None:
    environment = {name: "hf_abcdef", "HOME": "/home/me", "GIT_AUTHOR_NAME": "banana1"}
    assert filtered(environment, f"{name}=hf_abcdef, HOME=/home/me, GIT_AUTHOR_NAME=banana1") == (
        f"{name}=***, HOME=/home/me, GIT_AUTHOR_NAME=banana1"
    )
    assert filtered(environment, "Cannot log in with hf_abcdef.") == "Cannot log in with ***."


def test_short_secrets_are_hidden_where_they_are_assigned_only() -> None:
    assert filtered({"API_KEY": "1"}, "API_KEY=1, step 11") == "API_KEY=***, step 11"


def test_the_log_of_a_run_has_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_quite_secret")
    runner = PretrainRunner(tmp_path, [*SHORT_RUN, "regime.num_steps=2"], monkeypatch, capsys)
    assert runner() == (0, [])
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert "HF_TOKEN=***" in log
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and b"hf_quite_secret" in p.read_bytes()]
    assert os.environ["HF_TOKEN"] == "hf_quite_secret"
