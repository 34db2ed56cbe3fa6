"""Quiet and repeatable: two threads, no progress bars, no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MONOQUANT_CACHE_DIR"] = ""

import pytest
import torch
import transformers

torch.set_num_threads(2)
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
