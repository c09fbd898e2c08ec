"""A real pre-trained transformer whose forward pass is written once, and texts to fine-tune it on."""

from __future__ import annotations

from polyopt.models.pretrained.bert import Bert as Bert
from polyopt.models.pretrained.bert import mean_pool as mean_pool
from polyopt.models.pretrained.bert import unit as unit
from polyopt.models.pretrained.gelu import gelu as gelu
