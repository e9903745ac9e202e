"""One process of a pretraining; it leaves the seed it draws dropout with."""

import os
import sys
from pathlib import Path

import torch

import pretrain

pretrain.main(sys.argv[1:])
Path(f"seed{os.environ['RANK']}").write_text(str(torch.initial_seed()))
