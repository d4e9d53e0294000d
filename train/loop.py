"""The training loop: step, metrics, and what is due. One line a step means one state a line.

The line of step `s` holds everything measured on the weights after `s` updates: validation, tasks,
and the training loss of update `s` before it changes them.
"""

from storage.run_folder import State
from train.checks import check, check_before_last_save
from train.evaluation import evaluate, evaluation_due
from train.profile_steps import ProfiledSteps
from train.run import Run
from train.saving import save, save_and_wait, save_due
from train.schedule import learning_rate
from train.step import train_step


def train(run: Run) -> State:
    """Train to the last step, or to a stop that all ranks agreed on; says which it was."""
    config = run.config
    span = config.profile if run.ranks.is_main else None
    profiled = ProfiledSteps(span, config.out, run.ranks.device)
    run.progress.start_clock()
    while not run.progress.stop_agreed:
        check(run)
        if evaluation_due(run):
            run.report()  # the step in flight, whose seconds are not evaluation's
            with run.progress.paused():
                evaluate(run)
            continue  # a stop may have been agreed meanwhile
        if run.step >= run.steps:
            break
        if save_due(run):
            run.report()
            with run.progress.paused():
                save(run)

        profiled.before(run.step)
        step, extra = run.step, run.take_extra()  # what was just measured belongs to its line
        batch = run.loader.next_step()
        lr = learning_rate(step, run.steps, config.optimizer.lr, config.schedule)
        values = train_step(run, batch, lr, run.stop_wanted())
        run.report()  # the step before, while this one runs
        run.progress.launched(step, lr, batch.first_window, run.tokens, values, extra)

    profiled.close()
    run.report()
    check_before_last_save(run)
    if run.progress.stop_agreed:
        save_and_wait(run)
        return "preempted"
    run.metrics.write(run.step, {"tokens": run.tokens, **run.take_extra()})
    save_and_wait(run)
    return "finished"
