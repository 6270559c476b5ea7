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
    calls = commands.add_parser("calls", help="make the calls of project 1: train_new.csv, dev_new.csv, test_new.csv")
    calls.add_argument("folder", nargs="?", help="folder to write; default data/intent")
    calls.add_argument("--full", action="store_true", help="12,799 / 3,200 / 4,000 calls as in the real data, instead of 3,000 / 600 / 1,000")
    calls.add_argument("--seed", type=int, default=None, help="another seed makes other calls")
    calls.set_defaults(do=_calls)
    sentences = commands.add_parser("sentences", help="make the sentences of project 2: train_triplet.jsonl, val_triplet.jsonl, test_triplet.jsonl")
    sentences.add_argument("folder", nargs="?", help="folder to write; default data/triplets")
    sentences.add_argument("--train", type=int, default=None, metavar="N", help="so many sentences to train on; default 903")
    sentences.add_argument("--seed", type=int, default=None, help="another seed makes other sentences")
    sentences.add_argument("--wide", action="store_true", help="train with thousands of made-up names, which nobody can learn by heart")
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
    bench.add_argument("what", choices=["train", "eval", "prefix"], help="training settings side by side, evaluation, cost of the prompt")
    bench.add_argument("--base", default="glm-4-9b-0414", help="a base whose shape is known, or a tiny base for the CPU")
    bench.add_argument("--out", help="JSON file to write, e.g. reports/benchmarks/train.json")
    bench.set_defaults(do=_bench)
    options = parser.parse_args(arguments)
    try:
        return options.do(options) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # what the package raises says what to do; a traceback would hide it
        print(f"error: {error}", file=sys.stderr)
        return 1


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
    texts, problems = ([options.text], []) if options.text is not None else predict.read_texts(options.file)
    for problem in problems:
        print(problem, file=sys.stderr)
    wanted = comparison.system(options.run, options.checkpoint, options.base)
    for note in wanted.notes:
        print(f"NOTE: {note}", file=sys.stderr)
    extractor = predict.TripletExtractor(wanted.base, wanted.folder, wanted.quantization, form=wanted.form, constrained=options.constrained)
    for text, found in zip(texts, extractor.extract_batch(texts)):
        line = {"text": text, "triples": found.triples} | ({"unparsable": found.answer} if found.unparsable else {})
        print(json.dumps(line, ensure_ascii=False), flush=True)


def _merge(options) -> None:
    from glmlab import models, paths
    folder = models.find_checkpoint(options.run, options.checkpoint)
    base = models.read_run(options.run)["settings"]["base"]
    print(f"written: {paths.shown(models.merge(base, folder, options.out))}")


def _docs(options) -> int:
    from glmlab import docs, paths
    changed = docs.write(options.check, options.outputs)
    for path in changed:
        print(f"{'differs' if options.check else 'written'}: {paths.shown(path)}")
    return int(options.check and bool(changed))


def _bench(options) -> None:
    from glmlab import bench_eval, bench_train, paths
    tables = {"train": bench_train.train_table, "prefix": bench_train.prefix_table, "eval": bench_eval.eval_table}
    found = tables[options.what](options.base, log=lambda line: print(line, flush=True))
    found["about"]["command"] = f"python -m glmlab bench {options.what} --base {options.base}"
    if options.out:
        print(f"written: {paths.shown(paths.write_json(options.out, found))}")


def _convert(options) -> None:
    from glmlab import models, paths
    folder = models.convert(options.base, options.out, options.dtype, options.chat_format)
    print(f"written: {paths.shown(folder)}")


def _tiny(options) -> None:
    from glmlab.tiny import pretrain
    pretrain.make(options.name, lambda line: print(line, flush=True), options.steps, options.out, not options.no_compile, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
