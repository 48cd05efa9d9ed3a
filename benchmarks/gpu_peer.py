"""The PyTorch side of `benchmarks.gpu`: needs torch and transformers only, and prints one JSON object.

    python benchmarks/gpu_peer.py MODEL STEPS SMALL
"""

import json
import sys
import time

import torch
import transformers
from gpu_sizes import MODELS, SMALL


def model_of(name: str, size):
    """The model, and the inputs of its loss: tensors [B, T]."""
    fields, batch = size.fields, {key: torch.from_numpy(value).long() for key, value in size.batch().items()}
    if name == "bert_base":
        small = {"hidden_size": "width", "num_attention_heads": "num_heads", "intermediate_size": "mlp_width"}
        small |= {"num_hidden_layers": "layers", "max_position_embeddings": "max_length"}
        config = transformers.BertConfig(
            vocab_size=size.vocab_size, **{theirs: fields[ours] for theirs, ours in small.items() if ours in fields}
        )
        labels = torch.where(batch["weights"] > 0, batch["targets"], -100)
        return transformers.BertForMaskedLM(config), {"input_ids": batch["tokens"], "labels": labels}
    if name == "transformer_big":  # BART is the encoder–decoder of this shape that transformers has
        width, layers = fields["width"], fields["encoder_layers"]
        config = transformers.BartConfig(
            vocab_size=size.vocab_size, d_model=width, encoder_layers=layers, decoder_layers=layers, dropout=fields["dropout"],
            encoder_attention_heads=fields["num_heads"], decoder_attention_heads=fields["num_heads"],
            encoder_ffn_dim=fields["mlp_width"], decoder_ffn_dim=fields["mlp_width"], max_position_embeddings=1024,
        )  # fmt: skip
        inputs = {"input_ids": batch["source"], "decoder_input_ids": batch["target_inputs"], "labels": batch["targets"]}
        return transformers.BartForConditionalGeneration(config), inputs
    raise SystemExit(f"transformers has no {name}")


def main(name: str, steps: int, small: bool) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    size = (SMALL if small else MODELS)[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, inputs = model_of(name, size)
    model, inputs = model.to(device).train(), {key: value.to(device) for key, value in inputs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    compiled = torch.compile(model) if device == "cuda" else model
    for number in range(3 + steps):
        if number == 3:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(**inputs).loss
        loss.backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    print(json.dumps({"peer_tokens_per_second": round(size.tokens / seconds)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
