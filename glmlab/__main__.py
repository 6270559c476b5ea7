"""The command line: `python -m glmlab COMMAND`."""

import argparse
import sys


def main(arguments=None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m glmlab", description="GLM Lab: fine-tune, measure and use GLM models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    course = commands.add_parser("course", help="run the notebooks of a project headlessly and print the result")
    course.add_argument("project", choices=["intent", "triplets", "service", "medical"], help="which project")
    course.set_defaults(do=_course)
    train = commands.add_parser("train", help="train an adapter, as the training notebook does; behind `accelerate launch -m` on several processes")
    train.set_defaults(do=_train)
    evaluation = commands.add_parser("eval", help="evaluate a checkpoint on the test rows; behind `accelerate launch -m` on several processes")
    evaluation.add_argument("--run", help="run: a folder under data/runs, or a path; default TASK-reference", metavar="RUN")
    evaluation.add_argument("--checkpoint", help="step; -1: the last finished one, 0: the untuned base", metavar="N")
    evaluation.add_argument("--out", help="folder to write; default reports/TASK/eval/RUN-N", metavar="FOLDER")
    evaluation.set_defaults(do=_eval)
    for command in (train, evaluation):
        command.add_argument("task", choices=["intent", "triplets", "service", "medical"], help="which project")
        command.add_argument("--settings", help="parameters as papermill -f reads them, e.g. notebooks/settings/document-004.yaml", metavar="FILE")
        command.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                             help="one parameter of the notebook; may be repeated")
    calls = commands.add_parser("calls", help="make the calls of project 1: train_new.csv, dev_new.csv, test_new.csv")
    calls.add_argument("folder", nargs="?", help="folder to write; default data/intent")
    calls.add_argument("--full", action="store_true", help="12,799 / 3,200 / 4,000 calls as in the real data, instead of 3,000 / 600 / 1,000")
    calls.add_argument("--seed", type=int, default=None, help="another seed makes other calls")
    calls.set_defaults(do=_calls)
    sentences = commands.add_parser("sentences", help="make the sentences of project 2: train_triplet.jsonl, val_triplet.jsonl, test_triplet.jsonl")
    sentences.add_argument("folder", nargs="?", help="folder to write; default data/triplets")
    sentences.add_argument("--train", type=int, default=None, metavar="N", help="so many sentences to train on; default 903")
    sentences.add_argument("--seed", type=int, default=None, help="another seed makes other sentences")
    sentences.add_argument("--wide", action="store_true", help="half of train with thousands of made-up names, which nobody can learn by heart")
    sentences.set_defaults(do=_sentences)
    dialogues = commands.add_parser("dialogues", help="make the dialogues of project 3: train.json, dev.json, test.json")
    dialogues.add_argument("folder", nargs="?", help="folder to write; default data/service")
    dialogues.set_defaults(do=_dialogues)
    questions = commands.add_parser("questions", help="make the questions of project 4: train.csv, dev.csv, test.csv")
    questions.add_argument("folder", nargs="?", help="folder to write; default data/medical")
    questions.set_defaults(do=_questions)
    feedback = commands.add_parser("feedback", help="make training rows of the answers that were rated or corrected in the web page")
    feedback.add_argument("task", choices=["service"], help="whose page")
    feedback.add_argument("--train", help="training rows to add to; default data/service/train.json", metavar="FILE")
    feedback.add_argument("--out", help="file to write; default: that of --train, whose old content is kept as .bak", metavar="FILE")
    feedback.add_argument("--feedback", help="ratings; default: those of the page, data/chats/service/feedback.jsonl", metavar="FILE")
    feedback.set_defaults(do=_feedback)
    extract = commands.add_parser("extract", help="extract triples from texts: JSON lines, one a text")
    source = extract.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text")
    source.add_argument("file", nargs="?", help="a file with one text a line, or JSON lines", metavar="FILE")
    extract.add_argument("--run", default="triplets-reference", help="run: a folder under data/runs, or a path", metavar="RUN")
    extract.add_argument("--checkpoint", type=int, default=-1, help="step; default: the last finished one; 0: the untuned base")
    extract.add_argument("--base", default="", help="base model; default: the one the run was trained on")
    extract.add_argument("--constrained", action="store_true", help="copy heads and tails from the text, take relations from the list")
    extract.set_defaults(do=_extract)
    talks = [commands.add_parser("serve", help="web page and OpenAI-compatible API over a fine-tuned model"),
             commands.add_parser("chat", help="talk to a fine-tuned model in the terminal")]
    for command, run in zip(talks, (_serve, _chat)):
        _add_config(command, listens=run is _serve)
        command.set_defaults(do=run)
    merge = commands.add_parser("merge", help="merge a checkpoint into its base: a plain transformers folder")
    merge.add_argument("run", help="run: a folder under data/runs, or a path", metavar="RUN")
    merge.add_argument("out", help="folder to write")
    merge.add_argument("--checkpoint", type=int, default=-1, help="step; default: the last finished one")
    merge.add_argument("--adapter-only", action="store_true", help="write the adapter alone, as vLLM reads it beside its base")
    merge.set_defaults(do=_merge)
    convert = commands.add_parser("convert", help="write ChatGLM2, ChatGLM3, GLM-4-9B-Chat (or ChatGLM-6B) as a plain transformers folder")
    convert.add_argument("base", help="catalogue name, folder or Hub id in the original layout", metavar="NAME|FOLDER")
    convert.add_argument("out", help="folder to write", metavar="OUT")
    convert.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights; default: as published")
    convert.add_argument("--chat-format", choices=["chatglm", "chatglm2", "chatglm3", "glm4"],
                         help="for a folder that does not say which generation it is (ChatGLM2 and 3 share a vocabulary file)")
    convert.set_defaults(do=_convert)
    docs = commands.add_parser("docs", help="write what is generated in notebooks and README")
    docs.add_argument("--check", action="store_true", help="only tell what differs; exit status 1 if anything does")
    docs.add_argument("--outputs", action="store_true", help="execute the notebooks first and refresh the outputs that they keep")
    docs.set_defaults(do=_docs)
    tiny = commands.add_parser("tiny", help="make a tiny base from scratch: corpus, tokenizer, model, model card")
    tiny.add_argument("name", choices=["glm4-tiny", "chatglm3-tiny", "chatglm-tiny"], help="which base")
    tiny.add_argument("--out", help="folder to write; default data/models/NAME")
    tiny.add_argument("--steps", type=int, default=0, help="steps of training; default: the recipe's")
    tiny.add_argument("--minutes", type=float, default=0, help="stop after so many minutes, to measure the speed of a machine")
    tiny.add_argument("--no-compile", action="store_true", help="without torch.compile (no C++ compiler needed)")
    tiny.set_defaults(do=_tiny)
    bench = commands.add_parser("bench", help="measure speed and memory at a real model's shape, random weights (GPU), or of a tiny base (CPU)")
    bench.add_argument("what", choices=["train", "eval", "prefix", "gpus", "memory", "family"],
                       help="training and evaluation side by side; cost of the prompt; several GPUs (accelerate launch -m); does a card suffice: "
                            "the presets of notebooks/settings, the ChatGLM generations")
    bench.add_argument("--base", help="a base whose shape is known (default glm-4-9b-0414; memory, family: all), or a tiny base for the CPU")
    bench.add_argument("--preset", action="append", choices=["8gb", "12gb", "24gb", "80gb"], help="memory: only this one; may be repeated")
    bench.add_argument("--out", help="JSON file, written after each row, e.g. reports/benchmarks/train.json", metavar="FILE")
    bench.set_defaults(do=_bench)
    options = parser.parse_args(arguments)
    try:
        return options.do(options) or 0
    except KeyboardInterrupt as error:
        return _failed(error, "", 130)
    except (ValueError, OSError, RuntimeError, MemoryError, FloatingPointError) as error:
        return _failed(error, "error: ", 1)  # what the package raises says what to do; a traceback would hide it


def _failed(error: BaseException, before: str, status: int) -> int:
    """Say why a command ends, once where several processes run it."""
    from glmlab import processes
    processes.tell(error, lambda text: print(before + (text or "interrupted"), file=sys.stderr, flush=True))
    return status


def _train(options) -> None:
    from glmlab import launch
    launch.train(options.task, options.settings, dict(options.parameters))


def _eval(options) -> None:
    from glmlab import launch
    given = {"run": options.run, "checkpoint": options.checkpoint, "output_dir": options.out}
    launch.evaluate(options.task, options.settings, dict(options.parameters) | {name: text for name, text in given.items() if text is not None})


def _add_config(command, listens: bool) -> None:
    """The fields of `server.Config` as options."""
    command.add_argument("task", choices=["intent", "triplets", "service", "medical"], help="whose prompt and reference run")
    command.add_argument("--base", help="base model; default: the one the run was trained on")
    command.add_argument("--run", help="run whose adapter talks; default TASK-reference; none: the base alone", metavar="RUN")
    command.add_argument("--checkpoint", type=int, help="step of the run; default: the last finished one")
    command.add_argument("--adapter", action="append", metavar="NAME=FOLDER", help="one more adapter on the same base; may be repeated")
    command.add_argument("--quantization", choices=["nf4", "none"], help="base weights; default: as the run was trained")
    command.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps; default auto")
    command.add_argument("--dtype", choices=["auto", "bf16", "fp16", "fp32"], help="number format of the computation; default auto")
    command.add_argument("--max-new-tokens", type=int, help="longest answer; default 256")
    command.add_argument("--max-tokens", type=int, help="longest prompt and answer together; default 8192, or what the model was made for")
    if listens:
        command.add_argument("--host", help="address to listen on; another than loopback needs GLMLAB_API_KEY; default 127.0.0.1")
        command.add_argument("--port", type=int, help="default 5000; 0 takes a free one")
        command.add_argument("--slots", type=int, help="answers written at once; default 8")
        command.add_argument("--queue", type=int, help="requests that may wait besides; default 32")
        command.add_argument("--time-limit", type=float, help="seconds a request may take; default 120")
        command.add_argument("--language", choices=["zh", "en"], help="the page's first language; default zh")


def _config(options):
    from dataclasses import fields

    from glmlab import server
    given = vars(options) | {"adapters": tuple(_named_folder(text) for text in options.adapter or ())}
    return server.Config(**{item.name: given[item.name] for item in fields(server.Config) if given.get(item.name) is not None})


def _named_folder(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise ValueError(f"--adapter {text}: give it as NAME=FOLDER")
    return name, folder


def _serve(options) -> None:
    from glmlab import server
    server.serve(_config(options))


def _chat(options) -> None:
    from glmlab import terminal
    terminal.chat(_config(options))


def _course(options) -> None:
    from glmlab import course
    folder = course.run(options.project)
    print("\n" + course.summary(options.project, folder))


def _calls(options) -> None:
    from glmlab import paths
    from glmlab.tasks import calls
    sizes = calls.FULL_SIZES if options.full else calls.SIZES
    folder = options.folder or paths.data("intent")
    for path in calls.write(folder, sizes, calls.SEED if options.seed is None else options.seed):
        print(f"written: {paths.shown(path)}")


def _sentences(options) -> None:
    from glmlab import paths
    from glmlab.tasks import sentences
    if options.train is not None and options.train < 1:
        raise ValueError(f"--train {options.train}: at least one sentence is needed to train on")
    sizes = sentences.SIZES | ({} if options.train is None else {"train": options.train})
    seed = sentences.SEED if options.seed is None else options.seed
    for path in sentences.write(options.folder or paths.data("triplets"), sizes, seed, options.wide):
        print(f"written: {paths.shown(path)}")


def _dialogues(options) -> None:
    from glmlab import paths
    from glmlab.tasks import service_data
    for path in service_data.write(options.folder or paths.data("service")):
        print(f"written: {paths.shown(path)}")


def _questions(options) -> None:
    from glmlab import paths
    from glmlab.tasks import medical_data
    for path in medical_data.write(options.folder or paths.data("medical")):
        print(f"written: {paths.shown(path)}")


def _feedback(options) -> None:
    from glmlab import chats, paths
    from glmlab.tasks import service
    train = options.train or paths.data("service", "train.json")
    out = options.out or train
    learnt, problems = service.add_feedback(options.feedback or chats.folder("service") / "feedback.jsonl", train, out)
    print(service.problem_table(problems))
    for dialogue in learnt:
        print(f"row {dialogue.row}: {dialogue.question} -> {' '.join(dialogue.answer.split())}")
    print(f"{len(learnt)} rows added or corrected: {paths.shown(out)}")


def _extract(options) -> None:
    import json

    from glmlab import comparison, predict
    from glmlab.tasks import triplets
    rows, problems = ([triplets.Sentence(0, options.text, None)], []) if options.text is not None else predict.read_texts(options.file)
    for problem in problems:
        print(problem, file=sys.stderr)
    wanted = comparison.system(options.run, options.checkpoint, options.base)
    for note in wanted.notes:
        print(f"NOTE: {note}", file=sys.stderr)
    extractor = predict.TripletExtractor(wanted.base, wanted.folder, wanted.quantization, form=wanted.form, constrained=options.constrained,
                                         relations=triplets.of_run(wanted.relations))
    for row, found in zip(rows, extractor.extract_each([row.text for row in rows])):
        if found.cut:
            print(f"row {row.row}: too long, {found.cut} sentences left out of its middle; give it in parts", file=sys.stderr)
        line = {"row": row.row, "text": row.text, "triples": found.triples, "cut": found.cut}
        print(json.dumps(line | ({"unparsable": found.answer} if found.unparsable else {}), ensure_ascii=False), flush=True)


def _merge(options) -> None:
    from glmlab import models, paths, vllm
    folder = models.find_checkpoint(options.run, options.checkpoint)
    base = models.read_run(options.run)["settings"]["base"]
    out = vllm.adapter(base, folder, options.out) if options.adapter_only else models.merge(base, folder, options.out)
    print(f"written: {paths.shown(out)}")
    if options.adapter_only or vllm.serves(out):
        print(vllm.command(base, out, folder.parent.name))


def _docs(options) -> int:
    from glmlab import docs, paths
    changed = docs.write(options.check, options.outputs)
    for path in changed:
        print(f"{'differs' if options.check else 'written'}: {paths.shown(path)}")
    return int(options.check and bool(changed))


def _bench(options) -> None:
    from glmlab import bench, bench_eval, bench_memory, bench_train, paths
    if options.preset and options.what != "memory":
        raise ValueError(f"--preset is for bench memory, not for bench {options.what}")
    given = [f"--base {options.base}"] * bool(options.base) + [f"--preset {name}" for name in options.preset or ()]
    table = bench.Table(options.out, {"command": " ".join(["python -m glmlab bench", options.what, *given])}, lambda line: print(line, flush=True))
    measures = {"train": bench_train.add_training, "prefix": bench_train.add_prefixes, "gpus": bench_train.add_processes,
                "eval": bench_eval.add_evaluation}
    if options.what in measures:
        measures[options.what](table, options.base or "glm-4-9b-0414")
    elif options.what == "memory":
        bench_memory.add_presets(table, options.preset or list(bench_memory.BASES), options.base)
    else:
        bench_memory.add_family(table, options.base)
    if table.out:
        print(f"written: {paths.shown(table.out)}")


def _convert(options) -> None:
    from glmlab import models, paths
    folder = models.convert(options.base, options.out, options.dtype, options.chat_format)
    print(f"written: {paths.shown(folder)}")


def _tiny(options) -> None:
    from glmlab.tiny import pretrain
    pretrain.make(options.name, lambda line: print(line, flush=True), options.steps, options.out, not options.no_compile, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
