"""Every field of a run, its default and its meaning: the one place where configuration is declared.

A config file in `configs/` starts from `default_config()` and assigns what differs. `moe_jax.resolve` turns the result
into the frozen dataclasses below, or into one clear error.

Fields marked [identity] define what is trained. A work directory refuses to continue with another value of them;
everything else (steps, mesh, logging, evaluation, checkpoints) may change between restarts.

The comment behind a field, and the comment lines right above it where one line is too short, are its meaning:
`docs/routers.md` is generated from them.
"""

import dataclasses
import functools

import ml_collections


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer. [identity, but for `remat` and `loss_chunk`]"""

    num_layers: int = 2
    d_model: int = 64
    d_ff: int = 256  # hidden size of a dense feed-forward layer
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    head_dim: int = 0  # 0: d_model / num_heads
    vocab_size: int = 264  # at least the tokenizer's size
    # Of a dense feed-forward: relu, gelu (two matrices), swiglu, geglu, clamped_swiglu (three, gated).
    activation: str = "relu"
    tie_embeddings: bool = False  # output head = transposed input embedding
    norm_eps: float = 1e-6
    norm_place: str = "pre"  # pre: what a part of a layer reads is normalised; post: what it writes (OLMo 2, FlexOlmo)
    embedding_scale: float = 1.0  # multiplies the embedded tokens, like the next two for muP (Granite)
    residual_scale: float = 1.0  # multiplies what each part of a layer adds to the stream
    logits_scale: float = 1.0  # multiplies the logits
    init_scale: float = 1.0  # variance of a weight matrix is init_scale / fan_in; Switch trains with 0.1
    dtype: str = "float32"  # of activations and matmuls: float32, bfloat16 or float64; parameters stay float32
    remat: str = "none"  # kept for the backward pass: none (= keep all), full (recompute all), save_exchange
    loss_chunk: int = 512  # positions of each sequence whose logits exist at once


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How layers attend; heads and their size are in `model`. [identity, but for `kernel` and `chunk`]"""

    kind: str = "grouped_query"  # see moe_jax/models/attention/: grouped_query, latent
    qk_norm: str = ""  # of queries and keys: head (each head by itself), projection (all heads together); "": none
    bias: bool = False  # trained biases of queries, keys and values
    out_bias: bool = False  # a trained bias of the output
    sinks: bool = False  # each head has a trained score in its softmax that no value belongs to (GPT-OSS)
    scale: float = 0.0  # of the scores; 0: 1 / sqrt(size of a head)
    window: int = 0  # a position sees itself and the window - 1 positions before it; 0: all positions before it
    windows: tuple[int, ...] = ()  # of the layers in turn, over and over (GPT-OSS: 128, 0); (): window everywhere
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_fraction: float = 1.0  # of each head's dimensions, the first ones, that positions turn
    rope_interleaved: bool = False  # the pairs are (0, 1), (2, 3) ...; False: (n, n + half of the turned dimensions)
    rope_scaling: str = ""  # beyond the original length: linear, llama3, yarn, see moe_jax/models/attention/rotary.py
    rope_factor: float = 1.0  # how many times longer a scaled context is
    rope_original_length: int = 0  # positions before scaling
    rope_low_frequency: float = 1.0  # llama3: turns in the original length up to which a frequency is divided in full
    rope_high_frequency: float = 4.0  # llama3: and from which it is left alone
    rope_beta_slow: float = 1.0  # yarn: the same two, with a ramp over dimensions in between
    rope_beta_fast: float = 32.0
    rope_truncate: bool = True  # yarn: the ramp begins and ends at whole dimensions
    rope_attention_factor: float = 0.0  # yarn: multiplies what is turned; 0: 0.1 ln(rope_factor) + 1
    query_rank: int = 0  # latent: size that queries are compressed to; 0: not at all
    kv_rank: int = 0  # latent: size that keys and values are compressed to
    rope_dim: int = 0  # latent: turned dimensions of a head, beside model.head_dim others
    value_dim: int = 0  # latent: size of a head's values; 0: model.head_dim
    kernel: str = "xla"  # implementation: xla (anywhere), cudnn (NVIDIA, bfloat16)
    chunk: int = 512  # query positions whose scores exist at once (xla)


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """The Mixture-of-Experts layers. [identity, but for `dispatcher`, `exchange`, `exchange_chunks`,
    `exchange_unique`, `exchange_nodes`, `grouped_matmul`, `eval_capacity_factor` and `temperature_steps`, which follows
    `train.steps`]
    """

    num_experts: int = 0  # routed experts a layer; 0: a dense model
    top_k: int = 1  # experts a token
    every: int = 1  # every n-th layer is an MoE layer: 2 = layers 1, 3, 5 ... (counted from 0)
    first_dense: int = 0  # leading layers that stay dense
    d_ff: int = 0  # hidden size of one expert; 0: model.d_ff
    activation: str = ""  # of the experts; "": model.activation
    expert_bias: bool = False  # trained biases of the routed experts' matrices (GPT-OSS)
    fine_grained: int = 1  # split each expert into so many of d_ff / fine_grained, choose as many more; then 1 again
    num_experts_by_layer: tuple[int, ...] = ()  # of each MoE layer, num_experts being the largest; (): all alike
    top_k_by_layer: tuple[int, ...] = ()  # of each MoE layer, top_k being the largest; (): all alike
    # The training capacity factor of each MoE layer, capacity_factor being the largest; (): all alike.
    capacity_factor_by_layer: tuple[float, ...] = ()
    router_by_layer: tuple[str, ...] = ()  # of each MoE layer, router being the last; (): all alike
    num_shared_experts: int = 0  # experts that every token visits, besides the routed ones
    shared_d_ff: int = 0  # hidden size of all shared experts together; 0: num_shared_experts * d_ff (the split one)
    shared_gate: bool = False  # the shared experts' output times a sigmoid gate of the token's own (Qwen2-MoE)
    null_experts: int = 0  # further choices that lead nowhere: a token that takes one saves the computation
    expert_dropout: float = 0.0  # of the routed experts' hidden units, in training
    router: str = "switch"  # see moe_jax/moe/routers/
    normalize_gates: bool = False  # divide the K gates by their sum (K > 1 only)
    routed_scaling: float = 1.0  # multiplies the gates (DeepSeek-V2: 16, V3: 2.5)
    router_bias: bool = False  # a trained bias on the logits (GPT-OSS)
    router_dtype: str = "float32"  # of logits and softmax; bfloat16 only to reproduce how training diverges
    temperature: float = 1.0  # divides the logits, at the first step
    final_temperature: float = 0.0  # at the last step, linear in between; 0: temperature throughout
    temperature_steps: int = 0  # steps from the one to the other; 0: train.steps
    expert_groups: int = 1  # equal runs of consecutive experts that form an expert group (a device or a node)
    top_groups: int = 0  # expert groups that a token's experts may come from; 0: no limit
    group_score: str = "max"  # a group counts by its max score (DeepSeek-V2), or top2: the sum of its two best (V3)
    sinkhorn_iterations: int = 8  # scalings of the assignment towards equal loads
    top_p: float = 0.4  # probability that the chosen experts add up to
    second_expert: str = "always"  # keep the second expert always, by threshold, or at random
    second_threshold: float = 0.2  # with second_expert=threshold, the gate from which it is kept
    jitter: float = 0.0  # multiply the router's input by a uniform draw from [1 - jitter, 1 + jitter] in training
    dispatcher: str = "auto"  # see moe_jax/moe/dispatchers/; auto: the first that can carry the router's decisions
    exchange_dtype: str = ""  # of tokens on the wire, float32 or bfloat16; "": model.dtype
    exchange_chunks: int = 1  # pieces of the exchange: one may travel while the experts work on another
    # How tokens cross the mesh axis expert: all_to_all (padded), and for the dispatcher dropless ragged and all_gather;
    # auto: all_gather for dropless, all_to_all for the others. See docs/parallelism.md.
    exchange: str = "auto"
    exchange_unique: bool = False  # send a token once to each device, and not once for each of its experts there
    # Rows that a device has for what others send it, in multiples of what balanced routing sends; what is too much is
    # dropped and counted. 0: as many as can come.
    exchange_bound: float = 0.0
    exchange_nodes: int = 1  # nodes that mesh.expert spans: a token crosses the network once to each, then goes on
    # Implementation of the matmuls of dropless, see moe_jax/moe/grouped_matmul/; auto: by platform, padded on CPU.
    grouped_matmul: str = "auto"
    capacity_factor: float = 1.25  # expert buffer in multiples of the balanced load, in training
    eval_capacity_factor: float = 2.0  # the same in evaluation
    group_size: int = 256  # tokens routed together (may span sequences)
    drop_order: str = "position"  # who gets a slot first: position (causal), choice, priority
    balance_loss: float = 0.01  # weight of the load-balancing loss
    balance_scope: str = "micro_batch"  # tokens whose loads are balanced: micro_batch, sequence, global_batch (a step)
    importance_loss: float = 0.0  # weight of the importance loss (Shazeer et al. 2017)
    load_loss: float = 0.0  # weight of the load loss, for noisy_top_k (Shazeer et al. 2017)
    bias_rate: float = 0.0  # u of the auxiliary-loss-free balance bias (DeepSeek-V3: 0.001)
    balance_bias: bool = False  # have that bias where bias_rate=0 too: an imported one selects experts and stays
    # How the bias moves, see moe_jax/moe/bias_updates/: by the sign of a load's deviation from the mean, "proportional"
    # to it, "longcat" (for that router), or to the batch's "quantile", bias_rate of the way (Kimi K3: 1).
    bias_update: str = "sign"
    target_experts: float = 0.0  # bias_update="longcat": experts that a token visits on average, null ones apart
    bias_steps: int = 0  # steps in which the bias moves, then it stays; 0: all
    z_loss: float = 0.0  # weight of the router z-loss; ST-MoE uses 0.001
    entropy_loss: float = 0.0  # weight of the entropy of the router's distribution, in nats
    penalty: str = ""  # a loss of the router's own weights, see moe_jax/moe/penalties.py
    penalty_loss: float = 0.0  # weight of that loss


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: with them the weights stay as they are, and only `train.trainable` names more. [identity]"""

    rank: int = 0  # of each adapter; 0: none
    alpha: float = 16.0  # what an adapter adds counts alpha / rank
    # Matrices that have one, by patterns of their paths or by name: attention, dense, experts, shared.
    targets: tuple[str, ...] = ("attention", "experts")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut. [identity, but for `cache_dir`, `workers`]"""

    # stdlib | text: | jsonl: | parquet: | arrayrecord: (a file, folder or glob) | pypi:NAME==VERSION (source archive) |
    # tokens: | megatron: (ids made elsewhere); several joined by commas, see docs/corpora.md
    source: str = "stdlib"
    weights: tuple[float, ...] = ()  # of several sources; (): by size
    text_field: str = "text"  # jsonl, parquet: the field that holds the document
    prompt_field: str = ""  # jsonl, parquet: the field of a text before it that is read and not learnt; "": none
    # bytes | bpe (trained on the training split, model.vocab_size entries) | hf:PATH/tokenizer.json | ids (not known)
    tokenizer: str = "bytes"
    end_of_document: str = ""  # hf: the token, if not the file's eos_token; ids: its id, if not a new one at the end
    ids_vocab_size: int = 0  # tokenizer="ids": how many ids there are
    ids_dtype: str = "uint16"  # tokens: the type of the numbers in files other than .npy
    workers: int = 0  # processes that tokenize; 0: one for each core
    sequence_length: int = 128
    batch_size: int = 64  # sequences a step, over all devices
    holdout_fraction: float = 0.05  # of the files (jsonl: documents) of each domain
    max_bytes: int = 0  # a deterministic sample of the training files of about this size; 0: all of them
    mask_documents: bool = False  # attention stops at document boundaries
    cache_dir: str = "~/.cache/moe_jax"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The optimiser and the length of the run. [identity, but for `steps`, `max_skipped`, `profile`]

    The rates of cosine and wsd depend on `steps`: a run that is made longer goes on at the longer run's rates.
    """

    steps: int = 1_000
    optimizer: str = "adamw"  # adamw, adafactor
    learning_rate: float = 3e-3  # peak
    schedule: str = "cosine"  # cosine, rsqrt (inverse square root), wsd (warm-up, stable, decay), constant
    warmup_steps: int = 100
    decay_steps: int = 0  # wsd: the length of the final decay
    final_learning_rate: float = 0.1  # cosine, wsd: last rate as a fraction of the peak
    b1: float = 0.9  # adamw, like b2 and eps; adafactor has its authors' constants
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0  # never applied to norms and biases
    clip_norm: float = 1.0  # of the global gradient; 0: no clipping
    # Weights that are trained, by patterns of their paths or by names as router, experts, attention; "!" in front
    # leaves some out. (): all of them. See moe_jax/train/trainable.py.
    trainable: tuple[str, ...] = ()
    accumulate: int = 1  # micro-batches a step, each of data.batch_size / accumulate sequences
    # Updates in a row that may be skipped because the loss or a gradient is not finite; one more ends the run.
    max_skipped: int = 10
    profile: tuple[int, ...] = ()  # (first step, number of steps) to trace into WORKDIR/profile


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation during training."""

    every: int = 250  # steps; 0: only at the end
    batches: int = 8  # of data.batch_size sequences; 0: the whole held-out set


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in WORKDIR/checkpoints."""

    every: int = 500  # steps; one more is always written at the end
    keep: int = 3


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; -1: all that remain. Tokens are sharded over data, fsdp and expert."""

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Metrics in WORKDIR/metrics.jsonl and WORKDIR/tensorboard."""

    every: int = 20  # steps
    # Writes the load of every expert each time: an array for each layer in metrics.jsonl, a histogram in TensorBoard.
    # Pruning and placement of experts start from it.
    expert_loads: bool = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    seed: int = 0
    task: str = "text"  # what is trained, see moe_jax/tasks/
    model: ModelConfig = ModelConfig()
    attention: AttentionConfig = AttentionConfig()
    moe: MoEConfig = MoEConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    log: LogConfig = LogConfig()


NOT_IDENTITY = frozenset(
    {
        "model.remat",
        "model.loss_chunk",
        "attention.kernel",
        "attention.chunk",
        "moe.dispatcher",
        "moe.exchange",
        "moe.exchange_chunks",
        "moe.exchange_nodes",
        "moe.exchange_unique",
        "moe.grouped_matmul",
        "moe.eval_capacity_factor",
        "moe.temperature_steps",
        "data.cache_dir",
        "data.workers",
        "train.steps",
        "train.max_skipped",
        "train.profile",
    }
)


# Of the fields of model, attention and moe those that say how a model is trained, and not what it computes.
OF_TRAINING = frozenset(
    {
        *("model.dtype", "model.init_scale"),
        *("moe.expert_dropout", "moe.jitter", "moe.exchange_dtype", "moe.exchange_bound"),
        *("moe.capacity_factor", "moe.capacity_factor_by_layer", "moe.group_size", "moe.drop_order"),
        *("moe.balance_loss", "moe.balance_scope", "moe.importance_loss", "moe.load_loss", "moe.z_loss"),
        *("moe.entropy_loss", "moe.penalty", "moe.penalty_loss"),
        *("moe.bias_rate", "moe.bias_update", "moe.bias_steps", "moe.target_experts"),
    }
)


def default_config() -> ml_collections.ConfigDict:
    """The defaults above as an ml_collections config: assign to it; a field that does not exist is an error."""
    return ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))


def flatten(config: RunConfig) -> dict[str, object]:
    """{"model.d_model": 64, ...}, in the order of declaration."""
    return {name: getattr(getattr(config, section) if section else config, field) for name, section, field in _names()}


@functools.cache
def _names() -> tuple[tuple[str, str, str], ...]:
    """Every field of a run: its dotted name, its section ("" where it has none), and its name in there."""
    sections = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    parts = lambda section: [field.name for field in dataclasses.fields(section)]
    return tuple(
        (f"{name}.{part}" if part else name, name if part else "", part or name)
        for name, default in sections.items()
        for part in (parts(default) if dataclasses.is_dataclass(default) else [""])
    )


def identity(config: RunConfig) -> dict[str, object]:
    """The fields that define what is trained, flattened."""
    trained = ("seed", "task", "model.", "attention.", "moe.", "lora.", "data.", "train.")
    return {k: v for k, v in flatten(config).items() if k.startswith(trained) and k not in NOT_IDENTITY}


def architecture(config: RunConfig) -> dict[str, object]:
    """The fields that define what a model computes with given weights, flattened."""
    of_model = ("task", "model.", "attention.", "moe.")
    return {k: v for k, v in identity(config).items() if k.startswith(of_model) and k not in OF_TRAINING}
