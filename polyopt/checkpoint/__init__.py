"""Parameters and optimizer state in one file: safetensors and a JSON header, keyed by name. No pickle."""

from __future__ import annotations

from polyopt.checkpoint.store import Checkpoint as Checkpoint
from polyopt.checkpoint.store import load as load
from polyopt.checkpoint.store import save as save
