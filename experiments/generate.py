"""Continues prompts with a trained decoder, or talks with it.

    python -m experiments.generate --workdir=DIR|--init_from=FOLDER|WORKDIR|HUB_NAME|FILE.gguf --prompt="The capital of"
    python -m experiments.generate --init_from=… --chat                     a conversation in the terminal
    python -m experiments.generate --init_from=… --chat --prompt="What is the capital of France?"        one answer
    python -m experiments.generate --init_from=… < lines                    a prompt a line; an empty line gives an empty one
    python -m experiments.generate --init_from=… --format=jsonl < lines     {"prompt": text} or {"messages": […]} a line

        [--method=greedy|beam|sample] [--temperature=0.7] [--top_k=N] [--top_p=X] [--min_p=X] [--repetition_penalty=X]
        [--num_samples=N] [--beam_size=N] [--alpha=X] [--seed=N] [--stop=TEXT …] [--max_tokens=N] [--slide] [--logprobs]
        [--adapter=PATH | --adapter=NAME=PATH … --use=NAME] [--quantization=int8|nf4|q8_0|q4_0|q4_1|none]
        [--average=N | --step=best|last|N]

Without --method, tokens are drawn where one of the flags of sampling is given, and are the likeliest otherwise. --stop may be
given several times; \\n in it is the end of a line. With --format=jsonl each line of the output is the line of the input as a
JSON object, with "outputs": [{"text", "finish": "end", "stop" or "length", "logprob"}, …], in order, and with --logprobs each
output's "tokens" and "logprobs". With --format=text the continuation alone is written, a line a prompt, line ends as \\n;
with --prompt it is written as it is, while it comes.

--adapter names what was trained beside the model, which is read once: workdirs, folders of PEFT, GGUF files. --use=NAME says
which of several answers, and a JSON line's key "adapter" which answers that line.

--quantization holds the weights in four or eight bits, never as floats; of the blocks that a GGUF file has that is so without
it, and "none" makes floats of them. q8_0, q4_0 and q4_1 are what CPUs decode fast from.

Prompt and output share the model's longest input. A prompt that is too long loses its beginning, with a warning; an output
ends there. With --slide it goes on: the last half of the text is then read as a new prompt.
"""

import json
import sys
from collections.abc import Iterator

from absl import flags

from experiments import launch, lines
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_string("init_from", None, "the model, in place of --workdir", flag_values=FLAGS)
flags.DEFINE_string(
    "quantization", None, "hold weights in int8, nf4, q8_0, q4_0, q4_1, or as floats: none; else as the file", flag_values=FLAGS
)
launch.define_adapters(FLAGS, " where a line does not say it")
flags.DEFINE_string("prompt", None, "one prompt, in place of standard input", flag_values=FLAGS)
flags.DEFINE_bool("chat", False, "prompts are messages, answered by the model's chat template", flag_values=FLAGS)
flags.DEFINE_string("system", None, "--chat: a message of the system before all others", flag_values=FLAGS)
flags.DEFINE_enum("method", None, ("greedy", "beam", "sample"), "how tokens are chosen", flag_values=FLAGS)
flags.DEFINE_float("temperature", 1.0, "divides the logits; 0 is greedy", 0.0, flag_values=FLAGS)
flags.DEFINE_integer("top_k", 0, "the likeliest tokens alone; 0: all", flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "the likeliest tokens of so much probability", flag_values=FLAGS)
flags.DEFINE_float("min_p", 0.0, "no token below this share of the likeliest one's probability", flag_values=FLAGS)
flags.DEFINE_float("repetition_penalty", 1.0, "above 1, tokens that came before are less likely", flag_values=FLAGS)
flags.DEFINE_integer("num_samples", 1, "outputs for each prompt", 1, flag_values=FLAGS)
flags.DEFINE_integer("beam_size", 4, "beams", 1, flag_values=FLAGS)
flags.DEFINE_float("alpha", 0.6, "length penalty of beams", 0.0, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of what is drawn", flag_values=FLAGS)
flags.DEFINE_multi_string("stop", [], "a text that ends an output", flag_values=FLAGS)
flags.DEFINE_integer("max_tokens", 256, "most tokens of an output", 1, flag_values=FLAGS)
flags.DEFINE_bool("slide", False, "go on beyond the model's longest input", flag_values=FLAGS)
flags.DEFINE_bool("logprobs", False, "give tokens and their log-probabilities (jsonl)", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "outputs that are written together", 1, flag_values=FLAGS)
flags.DEFINE_enum("format", "auto", ("auto", "text", "jsonl"), "of lines; auto looks for { in the first", flag_values=FLAGS)
flags.DEFINE_integer("average", None, "over how many of the newest checkpoints", 1, flag_values=FLAGS)
launch.define_step(FLAGS)

OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_samples", "beam_size", "alpha", "seed", "max_tokens",
    "logprobs", "slide", "batch_size",
)  # fmt: skip
END = ("/exit", "/quit")


def main(args, config) -> None:
    from transformers_jax.inference import adapters, generate

    options = {name: args[name].value for name in OPTIONS}
    stops = tuple(stop.replace("\\n", "\n") for stop in args.stop)
    options = generate.Options(method=args.method or "", stop=stops, **options)
    options.check()
    if args.logprobs and args.format == "text":
        raise UserError("--logprobs: lines of text have no place for them; give --format=jsonl")
    models = adapters.named(launch.model(args, config), args.adapter, args.use)
    generator = generate.ByAdapter({name: generate.Generator(there, options) for name, there in models.items()})
    if args.prompt is not None:
        one(generator, args)
    elif args.chat and sys.stdin.isatty():
        converse(generator, args, terminal())
    else:
        answer_lines(generator, args)


def one(generator, args) -> None:
    """The continuation of --prompt, or its answer: shown while it comes, or as JSON."""
    as_json = args.format == "jsonl" or args.logprobs
    live = not as_json and generator.options.num_samples == 1 and generator.options.chosen != "beam"
    [found] = generator([example(args.prompt, args)], where=lambda i: "--prompt", show=write if live else None)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif live:
        print()
    else:
        print(*(output["text"] for output in found["outputs"]), sep="\n")


def converse(generator, args, asked: Iterator[str]) -> None:
    """A conversation: each line is answered, with all that was said before; /exit or the end of the input ends it."""
    said = [{"role": "system", "content": args.system}] if args.system else []
    for number, line in enumerate(asked):
        if not line.strip():
            continue
        said.append({"role": "user", "content": line})
        try:
            [found] = generator([{"messages": said}], first=number, where=lambda i: "the conversation", show=write)
        except UserError as error:  # a message with a special token, say: it is taken back
            said.pop()
            print(f"error: {error}", file=sys.stderr)
            continue
        print(flush=True)
        said.append({"role": "assistant", "content": found["outputs"][0]["text"]})


def answer_lines(generator, args) -> None:
    """The continuations of standard input, in order."""
    number, form = 0, args.format
    for block in lines.blocks_of_input():
        if form == "auto":
            form = "jsonl" if args.logprobs or any(line.lstrip().startswith("{") for line in block[:1]) else "text"
        places = [f"standard input, line {number + i + 1}" for i in range(len(block))]
        failure, examples = None, {}
        for i, line in enumerate(block):
            if not line.strip():
                continue
            try:
                is_json = form == "jsonl" and (args.format == "jsonl" or line.lstrip().startswith("{"))
                examples[i] = json_prompt(line, places[i]) if is_json else example(line, args)
                generator.prompt_ids(examples[i])
            except UserError as error:
                examples.pop(i, None)
                failure = error if str(error).startswith(places[i]) else UserError(f"{places[i]}: {error}")
                block = block[:i]
                break
        kept = list(examples)
        found = dict(zip(kept, generator(list(examples.values()), first=number), strict=True))
        for i in range(len(block)):
            show_line(found.get(i), form)
        sys.stdout.flush()
        if failure:
            raise failure
        number += len(block)


def show_line(found: dict | None, form: str) -> None:
    """One prompt's line of the output; empty for an empty one."""
    if form == "jsonl":
        print(json.dumps(found or {}, ensure_ascii=False))
    else:
        texts = [output["text"].replace("\r", "\\r").replace("\n", "\\n") for output in (found or {"outputs": []})["outputs"]]
        print("\t".join(texts))


def example(text: str, args) -> dict:
    """What a prompt of text asks for."""
    if not args.chat:
        return {"prompt": text}
    system = [{"role": "system", "content": args.system}] if args.system else []
    return {"messages": [*system, {"role": "user", "content": text}]}


def json_prompt(line: str, where: str) -> dict:
    """The prompt of a line of JSON.

    Raises:
      UserError: names the line.
    """
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} is not a JSON object")
    return found


def terminal() -> Iterator[str]:
    """Lines that are typed, until /exit or the end of the input."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if line.strip() in END:
            return
        yield line


def write(number: int, text: str) -> None:
    """Shows text at once."""
    print(text, end="", flush=True)


if __name__ == "__main__":
    launch.use_wide_vectors()
    launch.run(main, FLAGS)
