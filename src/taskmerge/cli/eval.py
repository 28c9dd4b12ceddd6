"""`taskmerge eval`."""

from taskmerge.cli.eval_words import PANELS, EvalWords
from taskmerge.cli.words import command


@command(EvalWords, "eval", panels=PANELS)
def evaluate(words: EvalWords) -> None:
    """Score checkpoints on the tasks of a suite, and print one table of tasks and checkpoints.

    `experts` is each task's own expert on its task, to which `normalised` scores are relative; `base` is the suite's
    base. Scores are percent in the table and fractions everywhere else.
    """
    from taskmerge.cli import evaluating

    evaluating.run(words)
