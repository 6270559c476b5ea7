"""The parameters of every notebook: one frozen dataclass each, read and checked by settings.py.

The four projects take the same parameters; a project's class says what is different: files, base, forms of the prompt, sizes.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from glmlab.settings import option

CHATGLM_LAYERS = "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"


def _chatglm_layers():
    return option(CHATGLM_LAYERS, "linear layers that get an adapter; these are ChatGLM-6B's, all-linear fits every base",
                  pattern=r"all-linear|[\w.]+(,[\w.]+)*")


def _file(project: str, split: str):
    shipped, kinds = {
        "intent": (f"intent/{split}_new.csv", "CSV, JSON or JSON lines"),
        "triplets": (f"triplets/{split.replace('dev', 'val')}_triplet.jsonl", "JSON lines of document 001, of DuIE or IEPile form"),
        "service": (f"service/{split}.json", "JSON list of document 002, or JSON lines"),
        "medical": (f"medical/{split}.csv", "lines of document 003, a table (CSV) or instructions (JSON)"),
    }[project]
    return option("", f"{split} rows: {kinds}; empty: the shipped ones", empty=("data", shipped))


def _folder(below: str):
    return option("", f"folder to write; empty: reports/{below.replace('{', '<').replace('}', '>')}", empty=("reports", below))


def _run(name: str):
    return option(name, "run: a folder under data/runs, or a path", filled=True)


def _new_run(name: str):
    return option(name, "name of the run: a folder under data/runs", filled=True)


def _base(name: str):
    return option(name, "base model: a name of the catalogue, a local folder, or a Hub id owner/name", filled=True)


def _own_base():
    return option("", "base model; empty: the one the run was trained on")


def _max_length(tokens: int):
    return option(tokens, "tokens of prompt and answer; longer texts lose their middle, never the answer", low=64)


def _new_tokens(tokens: int):
    return option(tokens, "tokens of an answer at most", low=1)


def _form(**forms: str):
    return option(next(iter(forms)), "; ".join(f"{name}: {text}" for name, text in forms.items()), choices=tuple(forms))


def _intent_form():
    return _form(system="prompt in the system turn", template="the old form, prompt repeated in each user turn")


def _triplet_form():
    return _form(instruction="the sentence behind the document's instruction", relations="the instruction lists the relations too")


def _service_form():
    return _form(chat="the question alone", document="as in document 002, behind 用户问：")


def _medical_form():
    return _form(chat="the base's own roles", rounds="as in document 003, [Round 1] written into the user turn")


def _device():
    return option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"auto|cpu|mps|cuda(:\d+)?")


def _dtype(name: str = "auto"):
    return option(name, "number format of the computation: auto, bf16, fp16 or fp32", choices=("auto", "bf16", "fp16", "fp32"))


def _seed():
    return option(7, "seed of everything drawn at random", low=0, high=2**32 - 1)


def _batch(rows: int = 25):
    return option(rows, "rows in one forward pass; lower it when memory runs out", low=1)


def _bootstrap():
    return option(2000, "resamples behind each interval and test", low=100, high=100_000)


def _samples(text: str, rows: int = 0):
    return option(rows, f"{text}, drawn with the seed; 0: all", low=0)


# --- what the four notebooks of a project take -------------------------------------------------------------------

@dataclass(frozen=True)
class WelcomeSettings:
    """00_welcome: one prompt, one model."""

    base: str = _base("glm4-tiny")
    prompt: str = option("您好，我想查一下这个月的话费。", "what you say to the model", filled=True)
    max_new_tokens: int = _new_tokens(60)
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class DataSettings:
    """01_data: from files to checked messages."""

    train_file: str = _file("intent", "train")
    dev_file: str = _file("intent", "dev")
    test_file: str = _file("intent", "test")
    output_dir: str = _folder("intent/data")
    form: str = _intent_form()
    base: str = _base("glm4-tiny")
    max_length: int = _max_length(1536)
    seed: int = _seed()


@dataclass(frozen=True)
class Training:
    """One adapter, its checkpoints, its log: what every project's training takes."""

    run: str = _new_run("intent-workshop")
    base: str = _base("glm4-tiny")
    train_file: str = _file("intent", "train")
    dev_file: str = _file("intent", "dev")
    train_samples: int = _samples("rows to train on")
    dev_samples: int = option(60, "rows of the evaluations during training; 0: all", low=0)
    form: str = _intent_form()
    method: str = option("qlora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    rank: int = option(16, "rank r of the adapter matrices", low=1)
    alpha: int = option(32, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    dropout: float = option(0.05, "share of the adapter's inputs zeroed in training", low=0, below=1)
    target_modules: str = option("gate_up_proj,down_proj", "linear layers that get an adapter, or all-linear",
                                 pattern=r"all-linear|[\w.]+(,[\w.]+)*")
    layers: int = option(1, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    warmup_steps: int = option(20, "steps of linear rise to learning_rate", low=0)
    schedule: str = option("cosine", "learning rate after the warm-up: cosine, linear, constant_with_warmup, constant",
                           choices=("cosine", "linear", "constant_with_warmup", "constant"))
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", low=0)
    batch_size: int = option(4, "rows of an optimizer step, times accumulation; in one pass where packs are off", low=1)
    accumulation: int = option(1, "effective batch of an optimizer step: batch_size x accumulation rows", low=1)
    steps: int = option(300, "optimizer steps", low=1)
    checkpoint_steps: int = option(100, "a checkpoint every so many steps", low=1)
    eval_steps: int = option(100, "an evaluation every so many steps; 0: none", low=0)
    early_stopping: int = option(0, "evaluations without improvement before training ends; 0: off", low=0)
    max_length: int = _max_length(1536)
    share_prefix: bool = option(True, "compute the prompt that all rows share once a pass; dropout is then drawn once for it")
    pack_tokens: int = option(0, "tokens of one pass; 0: as many as the free memory allows. The result stays the same", low=0)
    gradient_checkpointing: bool = option(False, "less memory, about a third more time; False: only where a row would not fit otherwise")
    compile_layers: bool = option(True, "on a GPU, compile the layers: a minute at the start, then about twice as fast")
    resume: bool = option(True, "go on from the last finished checkpoint of this run")
    tensorboard: bool = option(False, "write TensorBoard logs into the run folder")
    keep_optimizer: bool = option(True, "keep the optimizer state in checkpoints: needed to resume, twice the adapter's size")
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()

    def problems(self) -> list[str]:
        """Combinations that cannot work, each with what to do."""
        found = []
        if self.checkpoint_steps > self.steps:
            found.append(f"checkpoint_steps: {self.checkpoint_steps} is more than steps {self.steps}, so nothing would be saved; "
                         f"use at most {self.steps}")
        elif self.steps % self.checkpoint_steps:
            rest = self.steps % self.checkpoint_steps
            found.append(f"steps: {self.steps} is no multiple of checkpoint_steps {self.checkpoint_steps}, so the last {rest} steps would "
                         f"never be saved; use {self.steps - rest} or {self.steps - rest + self.checkpoint_steps} steps")
        if self.eval_steps > self.steps:
            found.append(f"eval_steps: {self.eval_steps} is more than steps {self.steps}, so nothing would be evaluated; "
                         f"use at most {self.steps}, or 0 for none")
        if self.early_stopping and not self.eval_steps:
            found.append("early_stopping: it needs evaluations; set eval_steps above 0")
        elif self.early_stopping and self.checkpoint_steps % self.eval_steps:
            found.append(f"early_stopping: every checkpoint must be evaluated to find the best one; make checkpoint_steps "
                         f"({self.checkpoint_steps}) a multiple of eval_steps ({self.eval_steps})")
        if self.warmup_steps > self.steps:
            found.append(f"warmup_steps: {self.warmup_steps} is more than steps {self.steps}, learning_rate would never be reached; "
                         "a tenth of the steps is usual")
        if self.schedule == "constant" and self.warmup_steps:
            found.append(f"schedule: constant has no warm-up, but warmup_steps is {self.warmup_steps}; "
                         "use constant_with_warmup, or 0 warmup_steps")
        return found


@dataclass(frozen=True)
class TrainSettings(Training):
    """02_train: an adapter for intent classification."""

    balance: float = option(1.0, "repeat the rows of rare labels: 0 leaves the shares as they are, 1 makes all labels equally frequent",
                            low=0, high=1)


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on the test rows: what every project's evaluation takes."""

    run: str = _run("intent-reference")
    checkpoint: int = option(5000, "step of the checkpoint; 0: the untuned base, -1: the last finished one", low=-1)
    samples: int = _samples("rows to evaluate")
    test_file: str = _file("intent", "test")
    batch_size: int = _batch()
    output_dir: str = _folder("intent/eval/{run}-{checkpoint}")
    base: str = _own_base()
    max_length: int = _max_length(1536)
    max_new_tokens: int = _new_tokens(32)
    quantization: str = option("auto", "base weights: auto as the run was trained, nf4 in 4 bit, none in 16 or 32 bit",
                               choices=("auto", "nf4", "none"))
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class EvalSettings(Evaluation):
    """03_eval: one checkpoint on the test calls."""

    mode: str = option("score", "score: choose among the labels by probability; generate: write the answer, then parse it",
                       choices=("score", "generate"))


@dataclass(frozen=True)
class CompareSettings:
    """04_compare: baselines, untuned base and checkpoints on the same rows."""

    run: str = _run("intent-reference")
    dev_file: str = _file("intent", "dev")
    test_file: str = _file("intent", "test")
    train_file: str = _file("intent", "train")
    dev_samples: int = _samples("dev rows that choose the best checkpoint", 300)
    samples: int = _samples("test rows for the report")
    checkpoints: str = option("all", "all, or steps with commas such as 500,1000 (papermill: -r checkpoints 500)",
                              pattern=r"all|\d+(,\d+)*")
    beside: str = option("", "checkpoints of other runs on the same rows, RUN:STEP with commas (STEP -1: the last)",
                         pattern=r"|[^,:]+:-?\d+(,[^,:]+:-?\d+)*")
    batch_size: int = _batch()
    output_dir: str = _folder("intent/compare")
    max_length: int = _max_length(1536)
    bootstrap: int = _bootstrap()
    recompute: bool = option(False, "compute again what is already in output_dir")
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class SystemPromptSettings:
    """05_system_prompt: where the prompt stands, how often it is computed, how long it is and what it says."""

    base: str = _base("glm4-tiny")
    run: str = option("prompts", "the runs are data/runs/RUN-NAME, one a way or prompt", filled=True)
    train_file: str = _file("intent", "train")
    dev_file: str = _file("intent", "dev")
    test_file: str = _file("intent", "test")
    train_samples: int = _samples("calls to train on", 800)
    dev_samples: int = _samples("dev calls that compare wordings", 100)
    samples: int = _samples("test calls for the comparison", 200)
    speed_samples: int = option(16, "test calls that are answered with and without the shared prompt, in section 4", low=2)
    cost_steps: int = option(6, "training steps measured for each way", low=2)
    steps: int = option(100, "optimizer steps of every run, except where time is what is equal", low=2)
    seconds: int = option(30, "training seconds of each way where time is what is equal", low=1)
    counted_samples: int = _samples("calls that TF-IDF learns from")
    candidates: int = option(5, "labels of the first stage that a prompt names", low=2, high=34)
    balance: float = option(1.0, "repeat the rows of rare labels: 0 leaves the shares as they are, 1 makes all labels equally frequent",
                            low=0, high=1)
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    layers: int = option(1, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    batch_size: int = option(4, "rows of an optimizer step", low=1)
    max_length: int = _max_length(1536)
    bootstrap: int = _bootstrap()
    output_dir: str = _folder("intent/system_prompt")
    recompute: bool = option(False, "measure again what is already in output_dir")
    device: str = _device()
    dtype: str = _dtype("fp32")
    seed: int = _seed()

    def training(self, name: str, steps: int = 0, form: str = "system", share_prefix: bool = True) -> TrainSettings:
        """The settings of one run; steps 0: as many as every run has. There is no evaluation on dev."""
        steps = steps or self.steps
        shared = {item.name: getattr(self, item.name) for item in fields(TrainSettings) if hasattr(self, item.name)}
        return TrainSettings(**shared | {"run": f"{self.run}-{name}", "steps": steps, "checkpoint_steps": steps, "eval_steps": 0,
                                         "form": form, "dropout": 0.0, "warmup_steps": min(20, steps // 5), "share_prefix": share_prefix,
                                         "dev_samples": 0, "keep_optimizer": False})


# --- project 2: triplets -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class TripletDataSettings(DataSettings):
    """11_triplets_data"""

    train_file: str = _file("triplets", "train")
    dev_file: str = _file("triplets", "dev")
    test_file: str = _file("triplets", "test")
    output_dir: str = _folder("triplets/data")
    form: str = _triplet_form()
    base: str = _base("chatglm-tiny")
    max_length: int = _max_length(512)


@dataclass(frozen=True)
class TripletTrainSettings(Training):
    """12_triplets_train"""

    run: str = _new_run("triplets-workshop")
    base: str = _base("chatglm-tiny")
    train_file: str = _file("triplets", "train")
    dev_file: str = _file("triplets", "dev")
    form: str = _triplet_form()
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    target_modules: str = _chatglm_layers()
    layers: int = option(0, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(2e-3, "highest learning rate", above=0)
    rank: int = option(8, "rank r of the adapter matrices", low=1)
    alpha: int = option(16, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    dropout: float = option(0.1, "share of the adapter's inputs zeroed in training", low=0, below=1)
    batch_size: int = option(4, "rows of an optimizer step, times accumulation; in one pass where packs are off", low=1)
    steps: int = option(600, "optimizer steps", low=1)
    checkpoint_steps: int = option(200, "a checkpoint every so many steps", low=1)
    eval_steps: int = option(200, "an evaluation every so many steps; 0: none", low=0)
    max_length: int = _max_length(512)


@dataclass(frozen=True)
class TripletEvalSettings(Evaluation):
    """13_triplets_eval"""

    run: str = _run("triplets-reference")
    checkpoint: int = option(-1, "step of the checkpoint; 0: the untuned base, -1: the last finished one", low=-1)
    test_file: str = _file("triplets", "test")
    output_dir: str = _folder("triplets/eval/{run}-{checkpoint}")
    max_length: int = _max_length(512)
    max_new_tokens: int = _new_tokens(160)
    mode: str = option("free", "free: greedy decoding; constrained: heads and tails copied from the sentence, relations from the list",
                       choices=("free", "constrained"))


@dataclass(frozen=True)
class TripletCompareSettings(CompareSettings):
    """14_triplets_compare"""

    run: str = _run("triplets-reference")
    dev_file: str = _file("triplets", "dev")
    test_file: str = _file("triplets", "test")
    train_file: str = _file("triplets", "train")
    dev_samples: int = _samples("dev rows that choose the best checkpoint")
    output_dir: str = _folder("triplets/compare")
    max_length: int = _max_length(512)
    max_new_tokens: int = _new_tokens(160)
    document: str = option("", "a text for the knowledge graph: a file with one sentence a line, or JSON lines; empty: the shipped one",
                           empty=("data", "triplets/document.txt"))


# --- project 3: customer service ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class ServiceDataSettings(DataSettings):
    """21_service_data"""

    train_file: str = _file("service", "train")
    dev_file: str = _file("service", "dev")
    test_file: str = _file("service", "test")
    output_dir: str = _folder("service/data")
    form: str = _service_form()
    base: str = _base("chatglm-tiny")
    max_length: int = _max_length(512)


@dataclass(frozen=True)
class ServiceTrainSettings(Training):
    """22_service_train"""

    run: str = _new_run("service-workshop")
    base: str = _base("chatglm-tiny")
    train_file: str = _file("service", "train")
    dev_file: str = _file("service", "dev")
    form: str = _service_form()
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    target_modules: str = _chatglm_layers()
    layers: int = option(0, "adapters in so many layers, counted from the last; 0: in all", low=0)
    rank: int = option(32, "rank r of the adapter matrices", low=1)
    alpha: int = option(64, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    dropout: float = option(0.0, "share of the adapter's inputs zeroed in training", low=0, below=1)
    learning_rate: float = option(4e-3, "highest learning rate", above=0)
    batch_size: int = option(4, "rows of an optimizer step, times accumulation; in one pass where packs are off", low=1)
    steps: int = option(480, "optimizer steps", low=1)
    checkpoint_steps: int = option(160, "a checkpoint every so many steps", low=1)
    eval_steps: int = option(160, "an evaluation every so many steps; 0: none", low=0)
    max_length: int = _max_length(512)


@dataclass(frozen=True)
class ServiceEvalSettings(Evaluation):
    """23_service_eval"""

    run: str = _run("service-reference")
    checkpoint: int = option(-1, "step of the checkpoint; 0: the untuned base, -1: the last finished one", low=-1)
    test_file: str = _file("service", "test")
    train_file: str = _file("service", "train")
    output_dir: str = _folder("service/eval/{run}-{checkpoint}")
    max_length: int = _max_length(512)
    max_new_tokens: int = _new_tokens(200)


@dataclass(frozen=True)
class ServiceCompareSettings(CompareSettings):
    """24_service_compare"""

    run: str = _run("service-reference")
    dev_file: str = _file("service", "dev")
    test_file: str = _file("service", "test")
    train_file: str = _file("service", "train")
    dev_samples: int = _samples("dev rows that choose the best checkpoint", 40)
    samples: int = _samples("test rows for the report", 80)
    output_dir: str = _folder("service/compare")
    max_length: int = _max_length(512)
    max_new_tokens: int = _new_tokens(200)


# --- project 4: medical questions --------------------------------------------------------------------------------

@dataclass(frozen=True)
class MedicalDataSettings(DataSettings):
    """31_medical_data"""

    train_file: str = _file("medical", "train")
    dev_file: str = _file("medical", "dev")
    test_file: str = _file("medical", "test")
    output_dir: str = _folder("medical/data")
    form: str = _medical_form()
    base: str = _base("chatglm3-tiny")
    max_length: int = _max_length(1024)


@dataclass(frozen=True)
class MedicalTrainSettings(Training):
    """32_medical_train"""

    run: str = _new_run("medical-workshop")
    base: str = _base("chatglm3-tiny")
    train_file: str = _file("medical", "train")
    dev_file: str = _file("medical", "dev")
    dev_samples: int = option(0, "rows of the evaluations during training; 0: all", low=0)
    form: str = _medical_form()
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    dropout: float = option(0.1, "share of the adapter's inputs zeroed in training", low=0, below=1)
    target_modules: str = option("all-linear", "linear layers that get an adapter, or all-linear", pattern=r"all-linear|[\w.]+(,[\w.]+)*")
    layers: int = option(0, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(2e-3, "highest learning rate", above=0)
    batch_size: int = option(8, "rows of an optimizer step, times accumulation; in one pass where packs are off", low=1)
    steps: int = option(195, "optimizer steps; 65 of 8 rows are an epoch of the shipped rows", low=1)
    checkpoint_steps: int = option(65, "a checkpoint every so many steps", low=1)
    eval_steps: int = option(65, "an evaluation every so many steps; 0: none", low=0)
    max_length: int = _max_length(1024)


@dataclass(frozen=True)
class MedicalEvalSettings(Evaluation):
    """33_medical_eval"""

    run: str = _run("medical-reference")
    checkpoint: int = option(390, "step of the checkpoint; 0: the untuned base, -1: the last finished one", low=-1)
    test_file: str = _file("medical", "test")
    output_dir: str = _folder("medical/eval/{run}-{checkpoint}")
    max_length: int = _max_length(1024)
    max_new_tokens: int = _new_tokens(200)


@dataclass(frozen=True)
class MedicalCompareSettings(CompareSettings):
    """34_medical_compare"""

    run: str = _run("medical-reference")
    dev_file: str = _file("medical", "dev")
    test_file: str = _file("medical", "test")
    train_file: str = _file("medical", "train")
    dev_samples: int = _samples("dev rows that choose the best checkpoint")
    samples: int = _samples("test rows for the report", 60)
    output_dir: str = _folder("medical/compare")
    max_length: int = _max_length(1024)
    max_new_tokens: int = _new_tokens(200)
    sentence_model: str = option("", "sentence model for one more similarity: a folder or a Hub id; empty: none")
    votes: str = option("", "A/B votes of the web page (JSON lines); empty: data/chats/medical/votes.jsonl, if it is there")


# --- beyond the projects -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FamilySettings:
    """41_glm_family: the generations side by side, then one fine-tune of each with the same rows and the same budget."""

    prompt: str = option("您好，我想查一下这个月的话费。", "the question that goes through all generations", filled=True)
    bases: str = option("glm4-tiny,chatglm3-tiny,chatglm-tiny", "bases to fine-tune, with commas", pattern=r"[^\s,]+(,[^\s,]+)*")
    run: str = option("family", "the runs are data/runs/RUN-BASE, one a base", filled=True)
    train_file: str = _file("intent", "train")
    test_file: str = _file("intent", "test")
    train_samples: int = _samples("calls to train on", 1000)
    samples: int = _samples("test calls for the comparison", 150)
    balance: float = option(1.0, "repeat the rows of rare labels: 0 leaves the shares as they are, 1 makes all labels equally frequent",
                            low=0, high=1)
    form: str = _intent_form()
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    rank: int = option(16, "rank r of the adapter matrices", low=1)
    alpha: int = option(32, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    layers: int = option(1, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    warmup_steps: int = option(20, "steps of linear rise to learning_rate", low=0)
    batch_size: int = option(4, "rows of an optimizer step, times accumulation; in one pass where packs are off", low=1)
    steps: int = option(300, "optimizer steps, the same for every base", low=1)
    checkpoint_steps: int = option(100, "a checkpoint every so many steps", low=1)
    max_length: int = _max_length(1536)
    bootstrap: int = _bootstrap()
    output_dir: str = _folder("family")
    device: str = _device()
    dtype: str = _dtype("fp32")
    seed: int = _seed()

    def problems(self) -> list[str]:
        """A base named twice, and what `TrainSettings` refuses."""
        names = self.bases.split(",")
        twice = sorted({name for name in names if names.count(name) > 1})
        found = [f"bases: {', '.join(twice)} more than once; name each base once"] if twice else []
        return found + self.training(names[0]).problems()

    def training(self, base: str) -> TrainSettings:
        """The settings of one base's run: all are the same but run and base. There is no evaluation on dev."""
        shared = {item.name: getattr(self, item.name) for item in fields(TrainSettings) if hasattr(self, item.name)}
        return TrainSettings(**shared | {"run": f"{self.run}-{Path(base).name}", "base": base, "target_modules": "all-linear",
                                         "eval_steps": 0, "dev_samples": 0, "keep_optimizer": False})


@dataclass(frozen=True)
class ServeSettings:
    """43_serve: one model, several adapters, many who ask."""

    task: str = option("service", "whose prompt, questions and run", choices=("intent", "triplets", "service", "medical"))
    run: str = option("", "run whose adapters talk: a folder under data/runs, or a path; empty: TASK-reference")
    checkpoint: int = option(-1, "step of the adapter that answers; -1: the last finished one", low=-1)
    early: int = option(0, "step of a second adapter on the same base; 0: the first finished one", low=0)
    base: str = _own_base()
    medical_run: str = _run("medical-reference")
    requests: int = option(16, "questions asked at once", low=2)
    slots: int = option(8, "answers written at once; the others wait", low=1)
    max_new_tokens: int = option(120, "tokens of an answer at most", low=8)
    output_dir: str = _folder("serve")
    device: str = _device()
    dtype: str = _dtype("fp32")
    seed: int = _seed()


#: The parameters of each notebook.
NOTEBOOKS = {"00_welcome": WelcomeSettings, "01_data": DataSettings, "02_train": TrainSettings, "03_eval": EvalSettings,
             "04_compare": CompareSettings, "05_system_prompt": SystemPromptSettings,
             "11_triplets_data": TripletDataSettings, "12_triplets_train": TripletTrainSettings,
             "13_triplets_eval": TripletEvalSettings, "14_triplets_compare": TripletCompareSettings,
             "21_service_data": ServiceDataSettings, "22_service_train": ServiceTrainSettings,
             "23_service_eval": ServiceEvalSettings, "24_service_compare": ServiceCompareSettings,
             "31_medical_data": MedicalDataSettings, "32_medical_train": MedicalTrainSettings,
             "33_medical_eval": MedicalEvalSettings, "34_medical_compare": MedicalCompareSettings,
             "41_glm_family": FamilySettings, "43_serve": ServeSettings}
