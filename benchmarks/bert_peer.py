"""The PyTorch side of `benchmarks.bert`: needs torch and transformers only, and prints one JSON object.

    python benchmarks/bert_peer.py STEPS
"""

import json
import sys

import torch
from bert_timing import LENGTH, ROWS, seconds
from transformers import BertConfig, BertForSequenceClassification


def main(steps: int) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens, labels = torch.randint(1000, 30000, (ROWS, LENGTH)), torch.randint(0, 2, (ROWS,))
    seen = torch.ones_like(tokens)

    def train():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=tokens, attention_mask=seen, labels=labels).loss.backward()
        optimizer.step()

    model.train()
    found = {"train": seconds(train, steps)}
    model.eval()
    with torch.inference_mode():
        for rows in 1, 32:
            batch = torch.randint(1000, 30000, (rows, LENGTH))

            def infer(batch=batch):
                model(input_ids=batch, attention_mask=torch.ones_like(batch))

            found[f"inference_{rows}"] = seconds(infer, steps if rows == 1 else max(3, steps // 2))
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
